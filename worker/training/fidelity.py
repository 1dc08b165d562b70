"""Lowers teachers to the precision that a job requests, and measures how their outputs change."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from app.recipe.job import JobSpec
from app.recipe.teachers.teacher import Teacher
from worker.data.batches import Batch
from worker.errors import UserError
from worker.students.model import Model
from worker.tasks.base import Figures, Task
from worker.teachers.precision import CannotLower, lower

COMPARED = 1024
"""Held-out samples, or tokens of held-out texts, for which both outputs are compared."""


def lower_teachers(task: Task, job: JobSpec, models: Mapping[str, Model], held_out: Batch) -> dict[str, Figures]:
    """Lower the `models` of teachers with a `precision` of fewer bits, in place; returns figures for the report, by
    teacher.

    `samples` is the number of held-out samples (or tokens) compared, `max_difference` the largest difference of an
    output; and the task's `likeness` of the lowered outputs to fp32. Raises UserError (`invalid_job`, with the path of
    `precision`) if the precision is not supported, or if outputs are not finite in it.
    """
    figures = {}
    for index, teacher in enumerate(job.all_teachers):
        if teacher.lowered:
            figures[teacher.name] = _lower(task, teacher, models[teacher.name], held_out, job.teacher_path(index))
    return figures


def _lower(task: Task, teacher: Teacher, model: Model, held_out: Batch, path: str) -> Figures:
    assert teacher.precision is not None  # it is lowered
    param = f"{path}.precision"
    before = task.sample_outputs(model, held_out, COMPARED)
    try:
        lower(model, teacher.precision)
    except CannotLower as error:
        message = f"{param} is {teacher.precision}: {error}; accepted: bf16, fp32, null"
        raise UserError("invalid_job", message, param) from error
    after = task.sample_outputs(model, held_out, COMPARED)
    if not bool(after.isfinite().all()):
        message = f"the teacher's outputs in {teacher.precision} are not finite; accepted: fp32, null"
        raise UserError("invalid_job", message, param)
    return {"precision": teacher.precision, "samples": len(before), **_compare(task, before, after)}


def _compare(task: Task, before: Tensor, after: Tensor) -> dict[str, float]:
    found = {"max_difference": (after - before).abs().max(), **task.likeness(after, before)}
    return {name: float(value) for name, value in found.items()}
