"""Rules of the optimizers."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.job import JobSpec
from app.recipe.losses import Loss
from app.recipe.losses.features import FeatureTerm
from app.recipe.optimizers import NormalizeAndProject, NormalizedGd, Optimizer
from app.recipe.problem import Problem
from app.recipe.students.architectures import Mlp, Student
from app.recipe.students.layers import NoNorm


def optimizer_problems(job: JobSpec) -> Iterator[Problem]:
    """Problems of optimizers that do not fit the parameters or losses that they train."""
    for index, stage in enumerate(job.recipe.stages):
        inherited = "recipe.optimizer" if stage.optimizer is None else f"recipe.stages[{index}].optimizer"
        learns = stage.losses if stage.trains == "student" else []
        yield from _fit_problems(job, stage.optimizer or job.recipe.optimizer, learns, inherited)
    yield from _fit_problems(job, job.recipe.optimizer, job.recipe.losses, "recipe.optimizer")


def _fit_problems(job: JobSpec, optimizer: Optimizer, losses: list[Loss], path: str) -> Iterator[Problem]:
    """Problems of one optimizer; `losses` are those that train the student, none if only terms are trained."""
    if isinstance(optimizer, NormalizeAndProject) and losses and not _normalises(job.student):
        found = "nap needs normalisation layers, and the student has none"
        yield Problem(f"{path}.kind", found, "any other optimizer, or a student with norms")
    if not isinstance(optimizer, NormalizedGd):
        return
    if not job.task_spec.fits(type(optimizer)):
        yield Problem(f"{path}.kind", job.task_spec.refusal(type(optimizer)), "an optimizer for this task")
    elif all(isinstance(term, FeatureTerm) for term in losses):
        found = f"{optimizer.kind} divides by the gradient at the student's outputs, and no loss gives them one"
        yield Problem(
            f"{path}.kind", found, "any other optimizer, or a loss on the outputs, where the student is trained"
        )


def _normalises(student: Student) -> bool:
    """Whether it may have normalisation layers, from the job alone."""
    return not isinstance(student, Mlp) and not isinstance(getattr(student, "norm", None), NoNorm)
