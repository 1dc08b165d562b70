"""Teachers brought to the arithmetic that a job asks for, and how that changes their outputs."""

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
"""Held-out samples, or tokens of held-out texts, that a teacher is asked about twice."""


def lower_teachers(task: Task, job: JobSpec, models: Mapping[str, Model], held_out: Batch) -> dict[str, Figures]:
    """Change the `models` of teachers with a `precision` of fewer bits, in place; returns figures for the report, by
    their names.

    `samples` is the number of held-out samples (or tokens) that both were asked about, `max_difference` the largest
    between their numbers; and the task's `likeness` of fewer bits to fp32. Raises UserError (`invalid_job`, blaming
    `precision`) where that arithmetic can't be had, or gives numbers that are not finite.
    """
    told = {}
    for index, teacher in enumerate(job.all_teachers):
        if teacher.lowered:
            told[teacher.name] = _lower(task, teacher, models[teacher.name], held_out, job.teacher_path(index))
    return told


def _lower(task: Task, teacher: Teacher, model: Model, held_out: Batch, path: str) -> Figures:
    assert teacher.precision is not None  # it is lowered
    param = f"{path}.precision"
    before = task.sample_outputs(model, held_out, COMPARED)
    try:
        lower(model, teacher.precision)
    except CannotLower as error:
        message = f"{param} is {teacher.precision}: {error}; accepted: bf16, fp32 or null"
        raise UserError("invalid_job", message, param) from error
    after = task.sample_outputs(model, held_out, COMPARED)
    if not bool(after.isfinite().all()):
        message = f"in {teacher.precision} the teacher says what is not finite; accepted: fp32 or null"
        raise UserError("invalid_job", message, param)
    return {"precision": teacher.precision, "samples": len(before), **_compare(task, before, after)}


def _compare(task: Task, before: Tensor, after: Tensor) -> dict[str, float]:
    found = {"max_difference": (after - before).abs().max(), **task.likeness(after, before)}
    return {name: float(value) for name, value in found.items()}
