"""Metrics of classification against numbers worked out by hand and against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from worker.metrics import classification as metrics

LOGITS = torch.tensor([[0.75, 0.25], [0.45, 0.55], [0.65, 0.35], [0.95, 0.05]], dtype=torch.float64).log()
LABELS = torch.tensor([0, 1, 1, 0])
RIGHT = (0.75, 0.55, 0.35, 0.95)
"""Probability of each sample's label; the third sample is the one that is not recognised."""


def random_case(seed: int) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(seed)
    return torch.tensor(random.normal(size=(203, 4)) * 2), torch.tensor(random.integers(0, 4, 203))


def test_choices_and_probabilities_of_a_case_done_by_hand() -> None:
    assert float(metrics.accuracy(LOGITS, LABELS)) == 0.75
    assert float(metrics.negative_log_likelihood(LOGITS, LABELS)) == pytest.approx(-sum(map(math.log, RIGHT)) / 4)
    assert float(metrics.brier_score(LOGITS, LABELS)) == pytest.approx(sum(2 * (1 - p) ** 2 for p in RIGHT) / 4)


def test_calibration_of_a_case_done_by_hand() -> None:
    """Ten widths part all four samples; two put them into one bin, for all are above one half."""
    alone = (0.25 + 0.45 + 0.65 + 0.05) / 4
    assert float(metrics.calibration_error(LOGITS, LABELS, 10)) == pytest.approx(alone)
    together = abs(3 / 4 - (0.75 + 0.55 + 0.65 + 0.95) / 4)
    assert float(metrics.calibration_error(LOGITS, LABELS, 2)) == pytest.approx(together, abs=1e-12)


def test_adaptive_bins_hold_equally_many_samples() -> None:
    """By confidence: 0.55 right, 0.65 wrong | 0.75 right, 0.95 right; of three parts the first has two samples."""
    halves = (abs(0.5 - 0.6) + abs(1 - 0.85)) / 2
    assert float(metrics.adaptive_calibration_error(LOGITS, LABELS, 2)) == pytest.approx(halves)
    thirds = (abs(0.5 - 0.6) + 0.25 + 0.05) / 3
    assert float(metrics.adaptive_calibration_error(LOGITS, LABELS, 3)) == pytest.approx(thirds)
    each = (0.45 + 0.65 + 0.25 + 0.05) / 4
    assert float(metrics.adaptive_calibration_error(LOGITS, LABELS, 15)) == pytest.approx(each)


def test_classwise_calibration_of_a_case_done_by_hand() -> None:
    """Probability of class 0 by halves: 0.45 (is not) | 0.75, 0.65, 0.95 (two are)."""
    expected = (0.45 + abs(2 - (0.75 + 0.65 + 0.95))) / 4
    found = metrics.classwise_calibration_error(LOGITS, LABELS, 2)
    assert found.tolist() == pytest.approx([expected, expected])


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_error_follows_its_definition(bins: int) -> None:
    logits, labels = random_case(bins)
    confidence, choice = logits.softmax(-1).max(-1)
    expected = 0.0
    for number in range(bins):
        chosen = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        if chosen.any():
            accuracy = (choice[chosen] == labels[chosen]).double().mean()
            expected += float((accuracy - confidence[chosen].mean()).abs() * chosen.double().mean())
    assert float(metrics.calibration_error(logits, labels, bins)) == pytest.approx(expected, abs=1e-12)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    logits = torch.tensor([[0.5, 0.5], [0.7, 0.3]], dtype=torch.float64).log()
    found = metrics.calibration_error(logits, torch.tensor([0, 1]), 2)
    assert float(found) == pytest.approx((0.5 + 0.7) / 2)


def test_samples_and_hits_of_every_class() -> None:
    logits = torch.eye(4)[[0, 0, 2, 2, 2]]
    samples, recognised = metrics.class_counts(logits, torch.tensor([0, 1, 2, 2, 0]))
    assert samples.tolist() == [2, 1, 2, 0]
    assert recognised.tolist() == [1, 0, 2, 0]


def test_likeness_to_the_teacher_of_a_case_done_by_hand() -> None:
    teacher = LOGITS.clone()
    teacher[1] = torch.tensor([0.55, 0.45], dtype=torch.float64).log()
    assert float(metrics.agreement(LOGITS, teacher)) == 0.75
    expected = (0.55 * math.log(0.55 / 0.45) + 0.45 * math.log(0.45 / 0.55)) / 4
    assert float(metrics.divergence(LOGITS, teacher)) == pytest.approx(expected)
    assert float(metrics.divergence(LOGITS, LOGITS)) == 0.0


def test_perfect_and_hopeless_answers_mark_the_ends_of_the_scales() -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    right, wrong = torch.tensor([0, 1]), torch.tensor([1, 0])
    for labels, brier, gap, nll in ((right, 0.0, 0.0, 0.0), (wrong, 2.0, 1.0, 2e4)):
        assert float(metrics.brier_score(logits, labels)) == brier
        assert float(metrics.negative_log_likelihood(logits, labels)) == nll
        for error in (metrics.calibration_error, metrics.adaptive_calibration_error):
            assert float(error(logits, labels, 15)) == gap


def test_everything_is_computed_in_float64() -> None:
    logits, labels = random_case(3)
    coarse = logits.bfloat16()
    for measure in (metrics.negative_log_likelihood, metrics.brier_score):
        found = measure(coarse, labels)
        assert found.dtype == torch.float64
        assert float(found) == float(measure(coarse.double(), labels))
    assert metrics.divergence(coarse, logits).dtype == torch.float64
