"""Base of all training methods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from app.recipe.base import EVERY_ANSWER, Answer, TaskOption
from app.recipe.losses import Loss
from app.recipe.problem import Problem
from app.recipe.stage import StageSpec
from app.recipe.students.architectures import Network
from app.recipe.tasks import tasks_for

if TYPE_CHECKING:  # the job holds a method, and a method's rules look at the job
    from app.recipe.job import JobSpec, Recipe

FIELD = "recipe.method"
STUDENT = "student"
"""What the losses of other networks than the student call the student that they learn from."""


class MethodSpec(TaskOption):
    """How the main training takes its steps."""

    answers: ClassVar[frozenset[Answer]] = EVERY_ANSWER
    learns_from_teacher: ClassVar[bool] = False
    """Whether it learns from a teacher though no loss does."""
    trains_teacher: ClassVar[bool] = False
    """Whether a teacher learns together with the student: the job's, or one that the method describes."""
    digest_key: ClassVar[str] = "method"
    """Its name in the digest that ties a checkpoint to its job (see `worker.training.checkpoint`)."""

    kind: str

    def problems(self, job: JobSpec) -> Iterator[Problem]:
        """What the rest of `job`, of a task that the method is for, lacks or has too much for it."""
        yield from ()

    def main_stages(self, recipe: Recipe) -> list[StageSpec]:
        """The stages that it divides the main training into; each has the losses of `recipe`."""
        return [StageSpec(losses=recipe.losses, epochs=recipe.epochs)]

    def networks(self) -> dict[str, Network]:
        """Networks that learn beside the student, by the path of the field that describes each."""
        return {}

    def objectives(self) -> dict[str, list[Loss]]:
        """Losses of such networks, by the path of their field; the student is their teacher, called `STUDENT`."""
        return {}


def method_problems(job: JobSpec) -> Iterator[Problem]:
    """What keeps the method of `job` from training."""
    method = job.recipe.method
    if not job.task_spec.fits(type(method)):
        found = f"is {method.kind}, which is not for {job.task}"
        yield Problem(f"{FIELD}.kind", found, f"supervised, or a task of {', '.join(tasks_for(type(method)))}")
        return
    yield from method.problems(job)
