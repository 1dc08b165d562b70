"""Regression: any numbers for each sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from app.recipe.data.sources import Data, Table
from app.recipe.job import EvaluationSpec, JobSpec
from app.recipe.students.model import ModelConfig, TargetScaling
from worker.data.batches import Batch
from worker.data.formats.column_readers import NumberColumns
from worker.data.formats.columns import Samples
from worker.data.formats.faults import invalid
from worker.data.label_notes import number_notes
from worker.data.statistics import fit_targets
from worker.data.task_data import Targets, TaskData
from worker.metrics import regression as metrics
from worker.metrics.permutation import moved_places
from worker.tasks.base import Evaluation, Metrics
from worker.tasks.card import TaskCard
from worker.tasks.moved import listed_moves
from worker.tasks.samples import SampleTask


class Regression(SampleTask):
    """Targets (N, C) float32 and outputs (N, C) floating in the units of the data."""

    name = "regression"
    grouped: ClassVar[tuple[int, str]] = (1, "numbers")
    """Number of columns of the targets in a group, and the name of such groups in the plural."""

    def __init__(self) -> None:
        self.columns, self.card = NumberColumns(self.name), TaskCard(table_pipeline="tabular-regression")

    def targets(self, job: JobSpec, teachers: Mapping[str, ModelConfig], samples: Mapping[str, Samples]) -> Targets:
        found = number_targets(samples)
        return Targets(found, numbers=found["data.train"].shape[1])

    def answer(
        self,
        job: JobSpec,
        train: Batch,
        targets: Targets,
        teachers: Mapping[str, ModelConfig],
        inherited: ModelConfig | None,
    ) -> dict[str, Any]:
        width = train.targets.shape[1]
        scaling = _target_scaling(train.targets, inherited)
        return {"targets": width, "target_names": _target_names(job.data, width), "target_scaling": scaling}

    def label_notes(self, train: Tensor, evaluation: Tensor, model: ModelConfig) -> list[str]:
        """Peculiarities of targets (N, C) float32."""
        return number_notes(train)

    def evaluate(
        self, predictions: Tensor, targets: Tensor, options: EvaluationSpec, teacher: Tensor | None = None
    ) -> Evaluation:
        """The errors of predictions (N, C) float32, and likeness to the teacher's predictions (N, C): `teacher_rmse`,
        in the unit of the targets."""
        found = self.errors(predictions, targets.cpu(), options)
        if teacher is not None:
            found["teacher_rmse"] = metrics.root_mean_squared_error(predictions, teacher)
        return Evaluation({name: float(value) for name, value in found.items()})

    def errors(self, predictions: Tensor, targets: Tensor, options: EvaluationSpec) -> dict[str, Tensor]:
        """`mse`, `rmse`, `mae`, `r2`, `pearson`, the last two as means over the outputs, of predictions (N, C) float32;
        scalars in float64."""
        return {
            "mse": metrics.mean_squared_error(predictions, targets),
            "rmse": metrics.root_mean_squared_error(predictions, targets),
            "mae": metrics.mean_absolute_error(predictions, targets),
            "r2": metrics.r_squared(predictions, targets).mean(),
            "pearson": metrics.pearson_correlation(predictions, targets).mean(),
        }

    def likeness(self, predictions: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """`rmse` between predictions (N, C) float32, in the units of the data."""
        return {"rmse": metrics.root_mean_squared_error(predictions, reference)}

    def baseline(self, job: JobSpec, data: TaskData, held_out: Batch) -> tuple[Metrics, str]:
        """The mean of the training samples."""
        mean = data.train.targets.cpu().double().mean(0, keepdim=True).float().expand(len(held_out), -1)
        return self.evaluate(mean, held_out.targets, job.evaluation).metrics, "the mean of the training samples"

    def oddities(self, predictions: Tensor, targets: Tensor, model: ModelConfig) -> Iterator[str]:
        """Numbers whose predictions, of (N, C) float32, would be right in another order."""
        size, kind = self.grouped
        if moved := moved_places(predictions, targets, size):
            listed = listed_moves(moved, str)
            yield f"seems to have its {kind} in another order (counted from 0): {listed}"

    def tolerances(
        self, predictions: Tensor, targets: Tensor, options: EvaluationSpec, allowed: float
    ) -> Iterator[tuple[str, float]]:
        """The error differs by at most that of predictions (N, C) float32 which are all off by `allowed`."""
        name, targets = self.main_metric.name, targets.cpu()
        yield name, self.evaluate(targets + allowed, targets, options).metrics[name]


def number_targets(samples: Mapping[str, Samples]) -> dict[str, Tensor]:
    """Targets (N, T) float32 by file; raises UserError (`invalid_data`) if files differ in T."""
    found = {param: torch.from_numpy(np.asarray(one.labels, np.float32)) for param, one in samples.items()}
    width = found["data.train"].shape[1]
    for param, targets in found.items():
        if targets.shape[1] != width:
            raise invalid(f"{param} has {targets.shape[1]} target columns; accepted: {width}, as in data.train", param)
    return found


def _target_names(data: Data, width: int) -> list[str] | None:
    """Names of the target columns; none if targets are lists, or of a format without columns."""
    columns = data.label_columns if isinstance(data, Table) else []
    return list(columns) if len(columns) == width else None


def _target_scaling(targets: Tensor, inherited: ModelConfig | None) -> TargetScaling | None:
    """The scaling that the inherited weights of the last layer were trained with, if these are used; else fitted to the
    targets."""
    stays = inherited is not None and inherited.targets == targets.shape[1]
    return inherited.target_scaling if inherited and stays else fit_targets(targets)


NUMBERS = Regression()
