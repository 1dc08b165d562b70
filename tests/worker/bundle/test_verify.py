"""Tolerances for the differences of exported files."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.recipe.job import EvaluationSpec
from worker.bundle.verify import (
    QUANTISED_TOLERANCE,
    TOLERANCE,
    allowed_difference,
    require_finite,
    require_same,
    require_same_metrics,
)
from worker.errors import SystemFault
from worker.tasks import task_for


def slacks(task: str, outputs: Tensor, targets: Tensor) -> list[tuple[str, float]]:
    return list(task_for(task).tolerances(outputs, targets, EvaluationSpec(), allowed_difference(outputs)))


def test_outputs_within_the_tolerance_pass_and_beyond_it_fail() -> None:
    live = torch.tensor([[10.0, -3.0], [0.0, 1.0]])
    allowed = allowed_difference(live)
    require_same("model.onnx", live + 9e-4, live, allowed)
    with pytest.raises(SystemFault, match=r"model\.onnx returns other outputs"):
        require_same("model.onnx", live + 2e-3, live, allowed)
    with pytest.raises(SystemFault):
        require_same("model.onnx", live * torch.nan, live, allowed)
    require_same("model.onnx", live + 2e-3, live, allowed_difference(live, QUANTISED_TOLERANCE))
    with pytest.raises(SystemFault):
        require_same("model.onnx", live + 0.6, live, allowed_difference(live, QUANTISED_TOLERANCE))


def test_a_file_that_may_differ_must_still_give_numbers() -> None:
    require_finite("model.int8.onnx", torch.ones(2, 2))
    with pytest.raises(SystemFault, match=r"model\.int8\.onnx"):
        require_finite("model.int8.onnx", torch.tensor([[1.0, torch.inf]]))


def test_choices_may_only_swap_where_the_tolerance_explains_it() -> None:
    logits, labels = torch.tensor([[5.0, 0.0], [5.0, 5.0], [5.0, 0.0], [0.0, 5.0]]), torch.zeros(4, dtype=torch.int64)
    live, allowed = {"accuracy": 0.75, "nll": 0.2}, slacks("image-classification", logits, labels)
    require_same_metrics("f", {"accuracy": 0.5, "nll": 0.2}, live, allowed)  # the second sample is a tie
    with pytest.raises(SystemFault, match="accuracy"):
        require_same_metrics("f", {"accuracy": 0.25, "nll": 0.2}, live, allowed)
    with pytest.raises(SystemFault, match="nll"):
        require_same_metrics("f", {"accuracy": 0.75, "nll": 0.21}, live, allowed)


@pytest.mark.parametrize(("task", "metric", "slack"), [("regression", "rmse", 1.0), ("keypoints", "nme", 2**0.5 / 4)])
def test_errors_may_differ_only_as_far_as_the_tolerance_of_outputs_allows(task: str, metric: str, slack: float) -> None:
    """The four points of each sample span a square of side 4."""
    targets = torch.tensor([0.0, 0.0, 0.0, 4.0, 4.0, 0.0, 4.0, 4.0]).repeat(3, 1)
    found, allowed = slacks(task, targets, targets), 4 * TOLERANCE * slack
    require_same_metrics("f", {metric: 0.5 + 0.99 * allowed}, {metric: 0.5}, found)
    with pytest.raises(SystemFault, match=metric):
        require_same_metrics("f", {metric: 0.5 + 1.01 * allowed}, {metric: 0.5}, found)
