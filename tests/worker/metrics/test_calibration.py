"""Bins of confidences and the temperature, against cases computed by hand and against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worker.metrics.calibration import HIGHEST, LOWEST, equal_mass_bins, equal_width_bins, fit_temperature

CONFIDENCE = torch.tensor([0.95, 0.5, 0.65, 0.55, 0.75], dtype=torch.float64)
CORRECT = torch.tensor([1, 0, 0, 1, 1], dtype=torch.float64)


def likelihood(logits: Tensor, labels: Tensor, temperature: float) -> float:
    return float(F.cross_entropy(logits.double() / temperature, labels))


def overconfident(factor: float) -> tuple[Tensor, Tensor]:
    """Labels drawn by softmax(logits), and these logits too large by `factor`."""
    torch.manual_seed(0)
    logits = torch.randn(4000, 5, dtype=torch.float64)
    return logits * factor, torch.multinomial(logits.softmax(-1), 1).squeeze(1)


def test_bins_of_equal_width_hold_counts_and_means() -> None:
    found = equal_width_bins(CONFIDENCE, CORRECT, 4)
    assert found.samples.tolist() == [0, 1, 3, 1]  # one half belongs to the bin below it
    assert found.confidence.tolist() == pytest.approx([0, 0.5, 0.65, 0.95])
    assert found.accuracy.tolist() == pytest.approx([0, 0, 2 / 3, 1])
    assert float(found.expected_error()) == pytest.approx((0.5 + 3 * (2 / 3 - 0.65) + 0.05) / 5)
    assert float(found.largest_error()) == pytest.approx(0.5)


def test_bins_of_equal_mass_differ_by_one_sample_at_most() -> None:
    found = equal_mass_bins(CONFIDENCE, CORRECT, 2)
    assert found.samples.tolist() == [3, 2]
    assert found.confidence.tolist() == pytest.approx([(0.5 + 0.55 + 0.65) / 3, 0.85])
    assert float(found.mean_error()) == pytest.approx((abs(1 / 3 - 1.7 / 3) + 0.15) / 2)
    assert equal_mass_bins(CONFIDENCE, CORRECT, 9).samples.tolist() == [1] * 5


@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0, 40.0])
def test_the_temperature_undoes_what_made_logits_too_large(factor: float) -> None:
    logits, labels = overconfident(factor)
    found = fit_temperature(logits, labels)
    assert not found.at_bound
    assert found.value == pytest.approx(factor * fit_temperature(logits / factor, labels).value, rel=1e-9)
    assert found.value == pytest.approx(factor, rel=0.1)


def test_no_other_temperature_has_a_larger_likelihood() -> None:
    logits, labels = overconfident(3.0)
    value = fit_temperature(logits.float(), labels).value
    best = likelihood(logits.float(), labels, value)
    assert all(best <= likelihood(logits.float(), labels, value * factor) for factor in (0.5, 0.999, 1.001, 2.0))


def test_logits_that_are_always_right_end_at_the_lower_bound() -> None:
    labels = torch.arange(4)
    assert fit_temperature(torch.eye(4), labels) == (LOWEST, True)
    assert fit_temperature(1e4 * torch.eye(4), labels) == (LOWEST, True)


@pytest.mark.parametrize("logits", [torch.zeros(4, 4), -torch.eye(4)], ids=["constant", "always wrong"])
def test_uninformative_logits_end_at_the_upper_bound(logits: Tensor) -> None:
    assert fit_temperature(logits, torch.arange(4)) == (HIGHEST, True)


def test_columns_that_are_masked_count_for_nothing() -> None:
    logits, labels = overconfident(2.0)
    masked = torch.cat([logits, torch.full((len(logits), 1), -math.inf)], dim=1)
    assert fit_temperature(masked, labels) == fit_temperature(logits, labels)


def test_huge_logits_have_a_finite_temperature() -> None:
    logits, labels = overconfident(1.0)
    found = fit_temperature(logits * 300, labels)
    assert found.value == pytest.approx(300 * fit_temperature(logits, labels).value, rel=1e-9)
    assert math.isfinite(found.value)
