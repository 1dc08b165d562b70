"""Metrics against hand-made cases and plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from worker.trainer.evaluate import calibration_error, judge


def logits_of(probabilities: list[list[float]]) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def test_metrics_of_a_case_done_by_hand() -> None:
    logits = logits_of([[0.75, 0.25], [0.45, 0.55], [0.65, 0.35], [0.95, 0.05]])
    labels = torch.tensor([0, 1, 1, 0])
    teacher = logits_of([[0.75, 0.25], [0.55, 0.45], [0.65, 0.35], [0.95, 0.05]])
    found = judge(logits, labels, ece_bins=10, teacher=teacher)
    assert found["accuracy"] == 0.75
    assert found["nll"] == pytest.approx(-sum(map(math.log, (0.75, 0.55, 0.35, 0.95))) / 4, rel=1e-6)
    assert found["ece"] == pytest.approx((0.25 + 0.45 + 0.65 + 0.05) / 4, rel=1e-5)
    assert found["agreement"] == 0.75
    assert found["kl"] == pytest.approx((0.55 * math.log(0.55 / 0.45) + 0.45 * math.log(0.45 / 0.55)) / 4, rel=1e-5)


def test_without_a_teacher_there_is_nothing_to_agree_with() -> None:
    assert set(judge(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), 15)) == {"accuracy", "nll", "ece"}


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_error_follows_its_definition(bins: int) -> None:
    random = np.random.default_rng(bins)
    log_p = torch.tensor(random.normal(size=(200, 4)) * 2).log_softmax(-1)
    labels = torch.tensor(random.integers(0, 4, 200))
    confidence, choice = log_p.exp().max(-1)
    expected = 0.0
    for number in range(bins):
        chosen = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        if chosen.any():
            accuracy = (choice[chosen] == labels[chosen]).double().mean()
            expected += float((accuracy - confidence[chosen].mean()).abs() * chosen.double().mean())
    assert float(calibration_error(log_p, labels, bins)) == pytest.approx(expected, abs=1e-12)


def test_huge_logits_give_finite_metrics() -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    found = judge(logits, torch.tensor([0, 0]), 15, teacher=-logits)
    assert all(math.isfinite(value) for value in found.values())
