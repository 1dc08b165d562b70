"""Evaluation by task, and mixtures of several teachers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from app.recipe.job import EvaluationSpec
from app.recipe.tasks import TaskName
from worker.errors import UserError
from worker.tasks import classification, task_for
from worker.tasks.base import ClassRow, Evaluation
from worker.tasks.samples import SampleTask

SQUARE = torch.tensor([0.0, 0.0, 0.0, 4.0, 4.0, 0.0, 4.0, 4.0])
"""Four points, the corners of a square whose side is 4."""


def sample_task(name: str) -> SampleTask:
    task = task_for(name)
    assert isinstance(task, SampleTask)
    return task


def evaluate(
    name: str, outputs: Tensor, targets: Tensor, options: EvaluationSpec, teacher: Tensor | None = None
) -> Evaluation:
    return sample_task(name).evaluate(outputs, targets, options, teacher)


def logits_of(probabilities: list[list[float]]) -> Tensor:
    return torch.tensor(probabilities).log()


@pytest.mark.parametrize("task", ["image-classification", "text-classification"])
def test_a_classifier_is_evaluated_by_choices_probabilities_and_calibration(task: TaskName) -> None:
    logits = logits_of([[0.75, 0.25], [0.45, 0.55], [0.65, 0.35], [0.95, 0.05]])
    teacher = logits_of([[0.75, 0.25], [0.55, 0.45], [0.65, 0.35], [0.95, 0.05]])
    found = evaluate(task, logits, torch.tensor([0, 1, 1, 0]), EvaluationSpec(ece_bins=10), teacher).metrics
    assert found["accuracy"] == 0.75
    assert found["nll"] == pytest.approx(-sum(map(math.log, (0.75, 0.55, 0.35, 0.95))) / 4, rel=1e-6)
    assert found["ece"] == pytest.approx((0.25 + 0.45 + 0.65 + 0.05) / 4, rel=1e-5)
    assert found["adaptive_ece"] == pytest.approx((0.25 + 0.45 + 0.65 + 0.05) / 4, rel=1e-5)
    assert found["brier"] == pytest.approx(2 * (0.25**2 + 0.45**2 + 0.65**2 + 0.05**2) / 4, rel=1e-5)
    assert found["agreement"] == 0.75
    assert found["kl"] == pytest.approx((0.55 * math.log(0.55 / 0.45) + 0.45 * math.log(0.45 / 0.55)) / 4, rel=1e-5)


def test_the_number_of_bins_is_that_of_the_job() -> None:
    logits, labels = logits_of([[0.75, 0.25], [0.95, 0.05]]), torch.tensor([0, 1])
    found = [
        evaluate("image-classification", logits, labels, EvaluationSpec(ece_bins=bins)).metrics for bins in (1, 10)
    ]
    assert found[0]["ece"] == found[0]["adaptive_ece"] == pytest.approx(abs(0.5 - 0.85))
    assert found[1]["ece"] == found[1]["adaptive_ece"] == pytest.approx((0.25 + 0.95) / 2)


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "names"),
    [
        ("image-classification", torch.eye(3), torch.arange(3), {"accuracy", "nll", "ece", "adaptive_ece", "brier"}),
        ("regression", torch.eye(3), torch.ones(3, 3), {"mse", "rmse", "mae", "r2", "pearson"}),
        ("keypoints", SQUARE[None] + 1, SQUARE[None], {"nme", "failure_rate", "auc"}),
    ],
)
def test_likeness_is_measured_only_where_there_is_a_teacher(
    task: TaskName, outputs: Tensor, targets: Tensor, names: set[str]
) -> None:
    likeness = {"agreement", "kl"} if task == "image-classification" else {"teacher_rmse"}
    assert set(evaluate(task, outputs, targets, EvaluationSpec()).metrics) == names
    assert set(evaluate(task, outputs, targets, EvaluationSpec(), teacher=outputs).metrics) == names | likeness
    assert sample_task(task).main_metric.name in names


def test_a_regression_is_evaluated_by_its_errors() -> None:
    outputs, targets = torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([[1.0], [3.0], [5.0]])
    found = (
        sample_task("regression")
        .evaluate(outputs, targets, EvaluationSpec(), teacher=torch.tensor([[1.0], [2.0], [3.0]]))
        .metrics
    )
    assert found["mse"] == pytest.approx(2 / 3)
    assert found["rmse"] == pytest.approx(math.sqrt(2 / 3))
    assert found["mae"] == pytest.approx(2 / 3)
    assert found["r2"] == pytest.approx(1 - 2 / 8)
    assert found["pearson"] == pytest.approx(10 / math.sqrt(14 * 8))
    assert found["teacher_rmse"] == pytest.approx(math.sqrt(3))


def test_keypoints_are_evaluated_by_the_length_that_the_job_names() -> None:
    """All points lie 1 to the right; the box has side 4, the diagonal between points 0 and 3 is the root of 32."""
    outputs = (SQUARE.view(4, 2) + torch.tensor([1.0, 0.0])).view(1, 8)
    by_box = evaluate("keypoints", outputs, SQUARE[None], EvaluationSpec()).metrics
    assert by_box == pytest.approx({"nme": 0.25, "failure_rate": 1.0, "auc": 0.0})
    by_pair = evaluate("keypoints", outputs, SQUARE[None], EvaluationSpec(nme_points=[0, 3])).metrics
    assert by_pair["nme"] == pytest.approx(1 / math.sqrt(32))
    with pytest.raises(UserError, match="no points 0 and 9"):
        evaluate("keypoints", outputs, SQUARE[None], EvaluationSpec(nme_points=[0, 9]))


def test_the_error_of_a_single_point_is_in_the_unit_of_the_targets() -> None:
    found = (
        sample_task("keypoints")
        .evaluate(torch.tensor([[0.53, 0.54]]), torch.tensor([[0.5, 0.5]]), EvaluationSpec())
        .metrics
    )
    assert found["nme"] == pytest.approx(0.05)


def test_the_table_of_classes_has_nothing_for_a_class_without_samples() -> None:
    logits = torch.eye(3)[[0, 0, 1]]
    table = evaluate("image-classification", logits, torch.tensor([0, 1, 1]), EvaluationSpec()).classes
    assert table == [ClassRow(0, 1, 1.0), ClassRow(1, 2, 0.5), ClassRow(2, 0, None)]


def test_very_many_classes_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification, "LISTED_CLASSES", 2)
    assert evaluate("image-classification", torch.eye(3), torch.arange(3), EvaluationSpec()).classes is None
    assert evaluate("regression", torch.eye(3), torch.eye(3), EvaluationSpec()).classes is None


def test_huge_logits_give_finite_metrics() -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    found = (
        sample_task("image-classification")
        .evaluate(logits, torch.tensor([0, 0]), EvaluationSpec(), teacher=-logits)
        .metrics
    )
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize(
    ("task", "worse", "better"),
    [
        ("image-classification", {"accuracy": 0.5, "nll": 0.1}, {"accuracy": 0.6, "nll": 0.9}),
        ("text-classification", {"accuracy": 0.5, "nll": 0.3}, {"accuracy": 0.5, "nll": 0.2}),
        ("regression", {"rmse": 2.0, "r2": 0.9}, {"rmse": 1.0, "r2": 0.1}),
        ("keypoints", {"nme": 0.2}, {"nme": 0.1}),
    ],
)
def test_each_task_decides_which_of_two_results_is_better(task: TaskName, worse: Any, better: Any) -> None:
    main = sample_task(task).main_metric
    assert main.is_better(better, worse)
    assert not main.is_better(worse, better)
    assert not main.is_better(better, better)


def test_several_teachers_are_mixed_by_their_weights() -> None:
    logits = [logits_of([[0.9, 0.1]]), logits_of([[0.3, 0.7]]) + 5]
    mixed = sample_task("image-classification").mixture(logits, [3.0, 1.0])
    torch.testing.assert_close(mixed.exp(), torch.tensor([[0.75, 0.25]]))
    numbers = sample_task("regression").mixture([torch.tensor([[1.0]]), torch.tensor([[5.0]])], [3.0, 1.0])
    assert float(numbers) == 2.0
    assert sample_task("image-classification").mixture(logits[1:], [1.0]) is logits[1]
