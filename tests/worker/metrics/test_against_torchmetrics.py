"""Our metrics against those of torchmetrics: equal where both define the same number, and where they differ, how.

torchmetrics is not a dependency of the worker: it agrees in every case only on errors, which are a line each, and to
import it takes three seconds and 130 MB, for it loads transformers, SciPy and matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchmetrics.functional import classification as their_classification
from torchmetrics.functional import regression as theirs

from worker.metrics import classification, embeddings, regression

Numbers = tuple[Tensor, Tensor]
Measure = Callable[[Tensor, Tensor], Tensor]
ERRORS: dict[str, tuple[Measure, Measure]] = {
    "mse": (regression.mean_squared_error, theirs.mean_squared_error),
    "rmse": (regression.root_mean_squared_error, lambda *given: theirs.mean_squared_error(*given, squared=False)),
    "mae": (regression.mean_absolute_error, theirs.mean_absolute_error),
}
CORRELATIONS: dict[str, tuple[Measure, Measure]] = {
    "r2": (regression.r_squared, theirs.r2_score),
    "pearson": (regression.pearson_correlation, lambda *given: theirs.pearson_corrcoef(*given).mean()),
}


def numbers(columns: int, scale: float = 1.0) -> Numbers:
    torch.manual_seed(0)
    targets = torch.randn(301, columns, dtype=torch.float64)
    return (targets + torch.randn_like(targets)) * scale, targets * scale


def logits_and_labels() -> Numbers:
    torch.manual_seed(0)
    return torch.randn(997, 7, dtype=torch.float64) * 3, torch.randint(0, 7, (997,))


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("name", [*ERRORS, *CORRELATIONS])
def test_random_numbers_have_the_same_value(name: str, columns: int) -> None:
    ours, other = (ERRORS | CORRELATIONS)[name]
    found, wanted = numbers(columns)
    given = (found, wanted) if columns > 1 else (found[:, 0], wanted[:, 0])
    assert float(ours(*given)) == pytest.approx(float(other(*given)), rel=1e-9)


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("scale", [0.0, 1e-5, 1e8])
def test_errors_agree_at_every_scale(name: str, scale: float) -> None:
    ours, other = ERRORS[name]
    given = numbers(2, scale)
    assert float(ours(*given)) == pytest.approx(float(other(*given)), rel=1e-9)


def test_shares_and_ranks_agree_in_single_precision() -> None:
    """Theirs are divided in float32, whatever they are given."""
    logits, labels = logits_and_labels()
    accuracy = their_classification.multiclass_accuracy(logits, labels, num_classes=7, average="micro")
    assert accuracy.dtype == torch.float32
    assert float(classification.accuracy(logits, labels)) == pytest.approx(float(accuracy), rel=1e-6)
    found, wanted = (side[:, 0].round(decimals=1) for side in numbers(1))
    assert float(embeddings.spearman_correlation(found, wanted)) == pytest.approx(
        float(theirs.spearman_corrcoef(found, wanted)), rel=1e-6
    )


def test_calibration_errors_agree_but_at_edges_and_for_logits_that_look_like_probabilities() -> None:
    def other(logits: Tensor, labels: Tensor, bins: int) -> float:
        classes = logits.shape[-1]
        return float(their_classification.multiclass_calibration_error(logits, labels, classes, n_bins=bins))

    logits, labels = logits_and_labels()
    assert float(classification.calibration_error(logits, labels, 15)) == pytest.approx(
        other(logits, labels, 15), rel=1e-6
    )
    edges = torch.tensor([[0.5, 0.5], [0.7, 0.3]], dtype=torch.float64).log(), torch.tensor([0, 1])
    assert float(classification.calibration_error(*edges, 2)) == pytest.approx(0.6)  # (0, 0.5] and (0.5, 1]
    assert other(*edges, 2) == pytest.approx(0.1)  # [0, 0.5) and [0.5, 1]: the gaps cancel
    likely = logits.softmax(-1)
    assert float(classification.calibration_error(likely, labels, 15)) < 0.11
    assert other(likely, labels, 15) > 0.5  # taken for probabilities


def test_small_or_constant_targets_differ() -> None:
    """Theirs takes a spread below 1e-4 for none, and has no correlation with a constant."""
    small = tuple(side[:, 0] for side in numbers(1, 1e-5))
    assert float(regression.r_squared(*small)) == pytest.approx(
        float(regression.r_squared(*(side[:, 0] for side in numbers(1))))
    )
    assert float(theirs.r2_score(*small)) == 1.0
    constant = numbers(1)[0][:, 0], torch.ones(301, dtype=torch.float64)
    with pytest.warns(UserWarning, match="variance"):
        assert bool(theirs.pearson_corrcoef(*constant).isnan())
    assert float(regression.pearson_correlation(*constant)) == 0.0
