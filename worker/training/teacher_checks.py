"""Checks of teachers on held-out samples before training: their metrics, and warnings about them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from app.recipe.job import JobSpec
from worker.data.task_data import TaskData
from worker.errors import UserError
from worker.students.model import Model
from worker.tasks.base import Figures, Metrics, Task, TeacherExaminer
from worker.training.mean_embedding import MeanEmbedding
from worker.training.warning_log import Warned

MAX_REPORT_BYTES = 2**26


class Checked(NamedTuple):
    """Findings about the teachers of a job."""

    warnings: list[Warned]
    outputs: dict[str, Tensor]
    """Outputs (N, C) float32 for all held-out samples, on the CPU, by the teachers' names; empty if only some samples
    were used."""
    embedding: Figures | None = None
    """Mean embedding of the samples by the first teacher (see `MeanEmbedding.figures`)."""


def check_teachers(
    task: Task, job: JobSpec, models: Mapping[str, Model], folders: Mapping[str, Path], data: TaskData, seed: int
) -> Checked:
    """Measure every teacher on the held-out samples: on a subset drawn by `seed`, or on all if there are no more, or if
    the job has requirements for its teachers.

    Raises UserError: `weak_teacher` for a teacher below `evaluation.require_teacher`, `invalid_job` for a metric that
    can't be computed on these samples.
    """
    if not models:
        return Checked([], {})
    whole = job.evaluation.require_teacher is not None
    examiner = task.examiner(job, data, seed, whole=whole)
    warnings, outputs_by_teacher, embedding = [], {}, MeanEmbedding()
    for index, (name, model) in enumerate(models.items()):
        with embedding.collecting(model) if index == 0 else nullcontext():
            found, outputs = examiner.measure(model)
        _require(task, job, name, found, examiner.samples)
        for odd in _odd(task, model, folders[name], examiner, found, outputs):
            warnings.append(odd._replace(message=f"teacher {name!r} {odd.message}"))
        if outputs is not None and examiner.samples == data.eval.samples:
            outputs_by_teacher[name] = outputs
    return Checked(warnings, outputs_by_teacher, embedding.figures())


def _odd(
    task: Task, model: Model, folder: Path, examiner: TeacherExaminer, found: Metrics, outputs: Tensor | None
) -> Iterator[Warned]:
    """Warnings about a teacher; messages continue from its name."""
    name, count = task.main_metric.of(found), examiner.samples
    higher, (baseline, which) = task.main_metric.higher_is_better, examiner.baseline(model)
    here = f"{name} {found[name]:.4g} on {count} held-out {examiner.unit}"
    if name in baseline and _hardly_better(found[name], baseline[name], count, higher):
        message = f"is hardly better than none: {here}, and {baseline[name]:.4g} for {which}"
        yield Warned("teacher_near_chance", message)
    reported = _reported(folder, task.name, name)
    if reported is not None and _far_worse(found[name], reported, higher):
        message = f"is far from its own report: {here}, and {reported:.4g} in the report"
        yield Warned("teacher_below_report", message)
    yield from (Warned("teacher_permuted", message) for message in examiner.oddities(outputs))


def _hardly_better(found: float, trivial: float, count: int, higher: bool) -> bool:
    """Whether a metric is within two standard errors of the baseline's, for a share or a correlation; or within a
    twentieth, for an error."""
    if not math.isfinite(found):
        return True
    if not higher:
        return found >= 0.95 * trivial
    error = math.sqrt(max(trivial * (1 - trivial), 0.0) / count) if trivial else 1 / math.sqrt(count)
    return found <= trivial + 2 * error


def _far_worse(found: float, reported: float, higher: bool) -> bool:
    return found < reported - 0.2 if higher else found > 2 * reported


def _reported(folder: Path, task_name: str, metric: str) -> float | None:
    """The metric in the report beside a model; none: there is no report, or it is of another task."""
    path = folder / "report.json"
    try:
        if not path.is_file() or path.stat().st_size > MAX_REPORT_BYTES:
            return None
        report = json.loads(path.read_bytes())
        value = report["student"][metric] if report["task"] == task_name else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _require(task: Task, job: JobSpec, name: str, found: Metrics, count: int) -> None:
    for metric, bound in (job.evaluation.require_teacher or {}).items():
        param = f"evaluation.require_teacher.{metric}"
        if metric not in found:
            message = f"{param} can't be computed on the held-out samples; accepted: {', '.join(found)}"
            raise UserError("invalid_job", message, param)
        higher = task.metrics[metric]
        if not (found[metric] >= bound if higher else found[metric] <= bound):
            least = f"at {'least' if higher else 'most'} {bound:g}"
            message = f"teacher {name!r} has {metric} {found[metric]:.4g} on {count} held-out samples, not {least}"
            raise UserError("weak_teacher", message, param)
