"""Numbers of any meaning for each sample."""

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
    """Targets and outputs (N, C) in the units of the data."""

    name = "regression"
    grouped: ClassVar[tuple[int, str]] = (1, "numbers")
    """Columns of the targets that belong together, and the name of such groups in the plural."""

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
        return number_notes(train)

    def evaluate(
        self, outputs: Tensor, targets: Tensor, options: EvaluationSpec, teacher: Tensor | None = None
    ) -> Evaluation:
        """The errors, and likeness to the teacher: `teacher_rmse`, in the unit of the targets."""
        found = self.errors(outputs, targets.cpu(), options)
        if teacher is not None:
            found["teacher_rmse"] = metrics.root_mean_squared_error(outputs, teacher)
        return Evaluation({name: float(value) for name, value in found.items()})

    def errors(self, outputs: Tensor, targets: Tensor, options: EvaluationSpec) -> dict[str, Tensor]:
        """`mse`, `rmse`, `mae`, `r2`, `pearson`, the last two as means over the outputs."""
        return {
            "mse": metrics.mean_squared_error(outputs, targets),
            "rmse": metrics.root_mean_squared_error(outputs, targets),
            "mae": metrics.mean_absolute_error(outputs, targets),
            "r2": metrics.r_squared(outputs, targets).mean(),
            "pearson": metrics.pearson_correlation(outputs, targets).mean(),
        }

    def likeness(self, outputs: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """`rmse`, in the units of the data."""
        return {"rmse": metrics.root_mean_squared_error(outputs, reference)}

    def baseline(self, job: JobSpec, data: TaskData, held_out: Batch) -> tuple[Metrics, str]:
        """The mean of the training samples."""
        mean = data.train.targets.cpu().double().mean(0, keepdim=True).float().expand(len(held_out), -1)
        return self.evaluate(mean, held_out.targets, job.evaluation).metrics, "the mean of the training samples"

    def oddities(self, outputs: Tensor, targets: Tensor, model: ModelConfig) -> Iterator[str]:
        """Numbers that would be right in another order."""
        size, kind = self.grouped
        if moved := moved_places(outputs, targets, size):
            listed = listed_moves(moved, str)
            yield f"seems to answer with its {kind} in another order (counted from 0): {listed}"

    def tolerances(
        self, outputs: Tensor, targets: Tensor, options: EvaluationSpec, allowed: float
    ) -> Iterator[tuple[str, float]]:
        """The error moves by at most what an error of the allowed size in all numbers would amount to."""
        name, targets = self.main_metric.name, targets.cpu()
        yield name, self.evaluate(targets + allowed, targets, options).metrics[name]


def number_targets(samples: Mapping[str, Samples]) -> dict[str, Tensor]:
    """Targets (N, T) float32 by file; raises UserError (`invalid_data`) where files differ in T."""
    found = {param: torch.from_numpy(np.asarray(one.labels, np.float32)) for param, one in samples.items()}
    width = found["data.train"].shape[1]
    for param, targets in found.items():
        if targets.shape[1] != width:
            raise invalid(f"{param} has {targets.shape[1]} numbers to answer with, data.train has {width}", param)
    return found


def _target_names(data: Data, width: int) -> list[str] | None:
    """The columns of the numbers to learn; none where they come as lists, or from a format without columns."""
    columns = data.label_columns if isinstance(data, Table) else []
    return list(columns) if len(columns) == width else None


def _target_scaling(targets: Tensor, inherited: ModelConfig | None) -> TargetScaling | None:
    """The one that the weights of the last layer were trained with, where they stay; else fitted to the targets."""
    stays = inherited is not None and inherited.targets == targets.shape[1]
    return inherited.target_scaling if inherited and stays else fit_targets(targets)


NUMBERS = Regression()
