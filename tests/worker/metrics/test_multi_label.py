"""Multi-label metrics, against scikit-learn and torchmetrics, and their errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, log_loss
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multilabel_average_precision,
    multilabel_f1_score,
)

from worker.metrics import multi_label as metrics

CLASSES = 6


def draw(rows: int = 301, *, ties: bool = False) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    frequency = torch.tensor([0.5, 0.3, 0.2, 0.1, 0.05, 0.02])
    labels = (torch.rand(rows, CLASSES, generator=random) < frequency).float()
    logits = 2.0 * torch.randn(rows, CLASSES, generator=random) + 2.0 * labels - 1.0
    return (logits.round() if ties else logits), labels


@pytest.mark.parametrize("ties", [False, True])
def test_mean_average_precision_is_that_of_scikit_learn(ties: bool) -> None:
    logits, labels = draw(ties=ties)
    found = metrics.mean_average_precision(logits, labels)
    assert found is not None
    assert found.dtype == torch.float64
    wanted = average_precision_score(labels.numpy(), logits.double().numpy(), average="macro")
    assert float(found) == pytest.approx(wanted, rel=1e-12)
    theirs = multilabel_average_precision(logits, labels.long(), CLASSES)
    assert float(found) == pytest.approx(float(theirs), rel=1e-5)


def test_classes_without_a_positive_sample_do_not_count() -> None:
    logits, labels = draw()
    without = labels.clone()
    without[:, 2] = 0
    kept = [0, 1, 3, 4, 5]
    assert metrics.mean_average_precision(logits, without) == metrics.mean_average_precision(
        logits[:, kept], labels[:, kept]
    )
    assert metrics.mean_average_precision(logits, torch.zeros_like(labels)) is None


@pytest.mark.parametrize("ties", [False, True])
def test_bounds_hold_whatever_moves_by_half_the_slack(ties: bool) -> None:
    logits, labels = draw(120, ties=ties)
    bounds = metrics.average_precision_bounds(logits, labels, 0.5)
    assert bounds is not None
    random = torch.Generator().manual_seed(1)
    for _ in range(50):
        moved = logits + (torch.rand(logits.shape, generator=random) - 0.5) * 0.5
        found = metrics.mean_average_precision(moved, labels)
        assert found is not None
        assert bounds.low <= found <= bounds.high
    for towards in (0.25, -0.25):  # the best and the worst order
        found = metrics.mean_average_precision(logits + towards * (2 * labels - 1), labels)
        assert found is not None
        assert bounds.low <= found <= bounds.high
    assert bounds.high - bounds.low < 0.5


def test_f1_is_that_of_scikit_learn_and_torchmetrics() -> None:
    logits, labels = draw()
    given = (logits > 0).long().numpy()
    for name, ours in (("micro", metrics.micro_f1), ("macro", metrics.macro_f1)):
        found = float(ours(logits, labels))
        assert found == pytest.approx(f1_score(labels.numpy(), given, average=name, zero_division=np.nan), rel=1e-12)
        theirs = multilabel_f1_score(logits.sigmoid(), labels.long(), CLASSES, average=name)
        assert found == pytest.approx(float(theirs), rel=1e-5)


def test_macro_f1_leaves_out_classes_that_are_neither_there_nor_predicted() -> None:
    logits, labels = torch.tensor([[1.0, -1.0, -1.0], [1.0, -1.0, 1.0]]), torch.tensor([[1.0, 0, 0], [1.0, 0, 0]])
    assert float(metrics.macro_f1(logits, labels)) == 0.5
    given = (logits > 0).long().numpy()
    assert f1_score(labels.numpy(), given, average="macro", zero_division=np.nan) == 0.5
    nothing = torch.zeros(2, 3)
    assert float(metrics.macro_f1(nothing, nothing)) == float(metrics.micro_f1(nothing, nothing)) == 0.0


def test_precision_at_k_counts_the_likeliest_classes_of_each_sample() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 0.0, 5.0, 0.0], [1.0, 0.0, 0.0, 2.0]])
    labels = torch.tensor([[1.0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    assert float(metrics.precision_at(logits, labels, 1)) == pytest.approx(1 / 3)
    assert float(metrics.precision_at(logits, labels, 3)) == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert float(metrics.precision_at(logits, labels, 4)) == pytest.approx(float(labels.mean()))


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_is_the_mean_of_each_labels(bins: int) -> None:
    logits, labels = draw()
    each = [
        binary_calibration_error(logits[:, number].double().sigmoid(), labels[:, number].long(), bins, norm="l1")
        for number in range(CLASSES)
    ]
    found = metrics.calibration_error(logits, labels, bins)
    assert float(found) == pytest.approx(float(torch.stack(each).double().mean()), rel=1e-5)


def test_likelihood_is_that_of_scikit_learn() -> None:
    logits, labels = draw()
    both = [log_loss(labels[:, number], logits[:, number].double().sigmoid()) for number in range(CLASSES)]
    assert float(metrics.negative_log_likelihood(logits, labels)) == pytest.approx(sum(both) / CLASSES, rel=1e-9)


def test_recall_counts_samples_with_a_label_and_those_that_are_given_it() -> None:
    logits, labels = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]), torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    assert [counts.tolist() for counts in metrics.recall_counts(logits, labels)] == [[2, 2], [1, 2]]


def test_likeness_is_nothing_between_equal_sides() -> None:
    logits, _ = draw()
    assert float(metrics.agreement(logits, logits)) == 1.0
    assert float(metrics.agreement(logits, -logits)) == 0.0
    assert float(metrics.divergence(logits, logits)) == 0.0
    p, q = 0.9, 0.5
    found = metrics.divergence(torch.tensor([[q]]).logit(), torch.tensor([[p]]).logit())
    wanted = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert float(found) == pytest.approx(wanted, rel=1e-6)


def test_huge_logits_give_finite_measures() -> None:
    logits, labels = torch.tensor([[1e4, -1e4], [-1e4, 1e4]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    for found in (
        metrics.negative_log_likelihood(logits, labels),
        metrics.calibration_error(logits, labels, 10),
        metrics.divergence(logits, -logits),
        metrics.mean_average_precision(logits, labels),
    ):
        assert found is not None
        assert found.isfinite()
