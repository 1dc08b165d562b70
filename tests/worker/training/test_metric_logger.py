"""Metrics of steps, and their means."""

from __future__ import annotations

import pytest
import torch

from worker.errors import UserError
from worker.training.metric_logger import MetricLogger


def filled(*losses: float) -> MetricLogger:
    metrics = MetricLogger()
    for loss in losses:
        metrics.add({"loss": torch.tensor(loss), "grad_norm": torch.tensor(1.0)})
    return metrics


def test_read_returns_the_mean_since_the_last_call() -> None:
    metrics = filled(1.0, 2.0, 6.0)
    assert metrics.read(3) == {"loss": 3.0, "grad_norm": 1.0}
    assert metrics.read(3) == {}


def test_a_value_that_only_some_steps_measure_is_a_mean_over_them() -> None:
    metrics = filled(1.0, 2.0)
    metrics.add({"loss": torch.tensor(6.0), "loss/late": torch.tensor(5.0)})
    assert metrics.read(3) == {"loss": 3.0, "grad_norm": 1.0, "loss/late": 5.0}


def test_a_check_leaves_the_values_unread() -> None:
    metrics = filled(1.0, 3.0)
    metrics.check(2)
    assert metrics.read(2)["loss"] == 2.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_bad_step_is_named(bad: float) -> None:
    with pytest.raises(UserError, match=rf"loss became {bad} at step 12;"):
        filled(1.0, bad, bad, 1.0).check(14)


def test_a_bad_gradient_counts_too() -> None:
    metrics = filled(1.0)
    metrics.add({"loss": torch.tensor(1.0), "grad_norm": torch.tensor(torch.inf)})
    with pytest.raises(UserError, match="grad_norm became inf at step 2;"):
        metrics.read(2)
