"""Teachers brought to the arithmetic that a job asks for, and what that changes of what they say."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from app.recipe.job import JobSpec
from app.recipe.tasks.task import CAUSAL_LM, CLASSIFICATION, EMBEDDING
from app.recipe.teachers.teacher import Teacher
from worker.bundle.report import Figures
from worker.data.batches import Batch
from worker.errors import UserError
from worker.metrics import classification, embeddings, regression
from worker.students.model import Model
from worker.tasks.evaluation import predict
from worker.tasks.language import first_logits
from worker.teachers.precision import CannotLower, lower

COMPARED = 1024
"""Held-out samples, or tokens of held-out texts, that a teacher is asked about twice."""


def lower_teachers(job: JobSpec, models: Mapping[str, Model], held_out: Batch) -> dict[str, Figures]:
    """Change the `models` of teachers with a `precision` of fewer bits, in place; by their names, what the report tells
    of it.

    `samples` is the number of held-out samples (or tokens) that both were asked about, `max_difference` the largest
    between their numbers; and for classes and tokens `agreement`, the share with the same likeliest one, and `kl`, the
    mean KL(fp32 || fewer bits) in nats; of vectors the mean `cosine`; of other numbers `rmse`. Raises UserError
    (`invalid_job`, blaming `precision`) where that arithmetic can't be had, or gives numbers that are not finite.
    """
    told = {}
    for index, teacher in enumerate(job.all_teachers):
        if teacher.lowered:
            told[teacher.name] = _lower(job, teacher, models[teacher.name], held_out, job.teacher_path(index))
    return told


def _lower(job: JobSpec, teacher: Teacher, model: Model, held_out: Batch, path: str) -> Figures:
    assert teacher.precision is not None  # it is lowered
    param = f"{path}.precision"
    before = _said(job, model, held_out)
    try:
        lower(model, teacher.precision)
    except CannotLower as error:
        message = f"{param} is {teacher.precision}: {error}; accepted: bf16, fp32 or null"
        raise UserError("invalid_job", message, param) from error
    after = _said(job, model, held_out)
    if not bool(after.isfinite().all()):
        message = f"in {teacher.precision} the teacher says what is not finite; accepted: fp32 or null"
        raise UserError("invalid_job", message, param)
    return {"precision": teacher.precision, "samples": len(before), **_compare(job, before, after)}


def _said(job: JobSpec, model: Model, held_out: Batch) -> Tensor:
    """Rows of what it answers (N, C), on the CPU."""
    if job.task == CAUSAL_LM:
        return first_logits(model.eval(), held_out, COMPARED)
    return predict(model, held_out.inputs[model.input_key][:COMPARED])


def _compare(job: JobSpec, before: Tensor, after: Tensor) -> dict[str, float]:
    found = {"max_difference": (after - before).abs().max()}
    if job.task in (*CLASSIFICATION, CAUSAL_LM):
        found |= {"agreement": classification.agreement(after, before), "kl": classification.divergence(after, before)}
    elif job.task == EMBEDDING:
        found["cosine"] = embeddings.teacher_cosine(after, before)
    else:
        found["rmse"] = regression.root_mean_squared_error(after, before)
    return {name: float(value) for name, value in found.items()}
