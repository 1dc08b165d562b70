"""Prediction of keypoints in images, such as landmarks of a face: x and y of each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from app.recipe.job import EvaluationSpec, JobSpec
from app.recipe.students.model import ModelConfig
from worker.data.formats.columns import Samples
from worker.data.formats.faults import invalid
from worker.data.task_data import Targets
from worker.metrics import keypoints as metrics
from worker.tasks.card import TaskCard
from worker.tasks.regression import Regression


class Keypoints(Regression):
    """Targets (N, 2 K) float32 and outputs (N, 2 K) floating, x before y, in the units of the data."""

    name = "keypoints"
    moves_points = True
    grouped = (2, "points")

    def __init__(self) -> None:
        super().__init__()
        self.card = TaskCard("keypoint-detection", "tabular-regression")

    def targets(self, job: JobSpec, teachers: Mapping[str, ModelConfig], samples: Mapping[str, Samples]) -> Targets:
        found = super().targets(job, teachers, samples)
        if found.numbers is not None and found.numbers % 2:
            raise invalid(f"{found.numbers} numbers are not points; accepted: x and y of each", "data.label_columns")
        return found

    def errors(self, predictions: Tensor, targets: Tensor, options: EvaluationSpec) -> dict[str, Tensor]:
        """`nme`, `failure_rate`, `auc` of predictions (N, 2 K) float32. Raises UserError (`invalid_data`) for points
        without a length to divide their error by."""
        errors = metrics.sample_errors(predictions, targets, _lengths(targets, options))
        return {
            "nme": metrics.normalised_mean_error(errors),
            "failure_rate": metrics.failure_rate(errors),
            "auc": metrics.area_under_curve(errors),
        }


def _lengths(targets: Tensor, options: EvaluationSpec) -> Tensor:
    """Lengths (N,) float64 to divide errors by; 1 for a single point, whose error stays in the unit of the targets."""
    if targets.shape[-1] == 2:
        return torch.ones(len(targets), dtype=torch.float64)
    first_second = options.nme_points
    return metrics.normalisers(targets, (first_second[0], first_second[1]) if first_second else None)


POINTS = Keypoints()
