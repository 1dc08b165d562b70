"""Metrics of a regression, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from worker.metrics.regression import (
    mean_absolute_error,
    mean_squared_error,
    pearson_correlation,
    r_squared,
    root_mean_squared_error,
)

TARGETS = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 3.0]])
PREDICTIONS = torch.tensor([[1.0, 1.0], [3.0, 0.0], [2.0, 2.0]])
"""Differences 0, 1, -1 and 1, 0, -1."""


def test_errors_are_means_over_all_numbers() -> None:
    assert float(mean_squared_error(PREDICTIONS, TARGETS)) == pytest.approx(4 / 6)
    assert float(root_mean_squared_error(PREDICTIONS, TARGETS)) == pytest.approx(math.sqrt(4 / 6))
    assert float(mean_absolute_error(PREDICTIONS, TARGETS)) == pytest.approx(4 / 6)
    assert float(mean_absolute_error(2.0 * PREDICTIONS, 2.0 * TARGETS)) == pytest.approx(8 / 6)
    assert float(mean_squared_error(2.0 * PREDICTIONS, 2.0 * TARGETS)) == pytest.approx(16 / 6)


def test_explained_variance_is_the_mean_over_the_outputs() -> None:
    """Residuals 2 and 2 of totals 2 and 6."""
    assert float(r_squared(PREDICTIONS, TARGETS)) == pytest.approx((0.0 + 4 / 6) / 2)
    assert float(r_squared(TARGETS, TARGETS)) == 1.0
    assert float(r_squared(TARGETS.mean(0).expand(3, 2), TARGETS)) == pytest.approx(0.0)


def test_correlation_is_the_mean_over_the_outputs() -> None:
    """Covariances 1 and 3 by norms sqrt(2 * 2) and sqrt(2 * 6)."""
    assert float(pearson_correlation(PREDICTIONS, TARGETS)) == pytest.approx((1 / 2 + 3 / math.sqrt(12)) / 2)
    assert float(pearson_correlation(-3.0 * TARGETS + 1.0, TARGETS)) == pytest.approx(-1.0)


@pytest.mark.parametrize(("predictions", "r2"), [([0.1, 0.1, 0.1], 1.0), ([0.1, 0.1, 0.2], 0.0)])
def test_constant_targets_have_no_correlation_and_are_met_or_not(predictions: list[float], r2: float) -> None:
    """The mean of three times 0.1 is not 0.1 in floating point."""
    targets, found = torch.full((3,), 0.1).double(), torch.tensor(predictions).double()
    assert float(r_squared(found, targets)) == r2
    assert float(pearson_correlation(found, targets)) == 0.0
    assert float(pearson_correlation(targets, found)) == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_numbers_of_any_precision_are_taken_to_float64(dtype: torch.dtype) -> None:
    for measure in (mean_squared_error, root_mean_squared_error, mean_absolute_error, r_squared, pearson_correlation):
        found = measure(PREDICTIONS.to(dtype), TARGETS.to(dtype))
        assert found.dtype == torch.float64
        assert found == measure(PREDICTIONS, TARGETS)


def test_a_single_output_may_come_without_an_axis() -> None:
    flat: Tensor = r_squared(PREDICTIONS[:, 1], TARGETS[:, 1])
    assert flat == r_squared(PREDICTIONS[:, 1:], TARGETS[:, 1:])
    assert float(flat) == pytest.approx(4 / 6)
