"""Export without training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from app.recipe.base import EVERY_ANSWER, Answer
from app.recipe.methods.base import FIELD, MethodSpec
from app.recipe.problem import Problem
from app.recipe.stage import StageSpec

if TYPE_CHECKING:  # a job has a method, and a method's rules use the job
    from app.recipe.job import JobSpec, Recipe


LARGEST_DIFFERENCE = 1e-4
"""Largest difference between the outputs of a converted student and its teacher, as a share of the largest output."""


class ExportOnly(MethodSpec):
    """No step: the student is evaluated and exported as it is initialised, from a stored model (`pretrained`), as a
    smaller copy of the teacher (`shrink`), or as an equal of it (`convert`).

    The report has the largest difference between the outputs of a converted student and its teacher on samples that are
    held out. A difference of more than 1e-4 of the largest output fails the job.
    """

    answers: ClassVar[frozenset[Answer]] = EVERY_ANSWER - {"anomalies"}
    minimises_losses: ClassVar[bool] = False
    applies: ClassVar[str] = "Every task. Converts, evaluates and exports what is trained already."
    cost: ClassVar[str] = "None; there are no steps."
    kind: Literal["export"] = "export"

    @property
    def learns_from_teacher(self) -> bool:
        return True  # the student's weights, or a comparison with it

    def problems(self, job: JobSpec) -> Iterator[Problem]:
        recipe = job.recipe
        if recipe.stages:
            yield Problem("recipe.stages", f"are given, and {self.kind} has no steps", "none")
        if not (job.start is not None or job.student.architecture in ("shrink", "convert")):
            found = f"is {self.kind}, and the weights of a {job.student.architecture} are random"
            yield Problem(f"{FIELD}.kind", found, "a student pretrained, shrink or convert, or another method")
        if getattr(job.student, "init", "teacher") != "teacher":
            yield Problem("student.init", f"is fresh, and {self.kind} trains nothing", "teacher")
        if recipe.max_steps is not None:
            yield Problem("recipe.max_steps", f"is given, and {self.kind} has no steps", "null")
        if recipe.ema_decay is not None:
            yield Problem("recipe.ema_decay", f"is given, and {self.kind} has no steps to average", "null")
        if job.resources.size > 1:
            yield Problem("resources.processes", f"are {job.resources.size}, and {self.kind} has no steps", "1")

    def main_stages(self, recipe: Recipe) -> list[StageSpec]:
        return [StageSpec.model_construct(losses=[], epochs=0)]

    def passes(self, recipe: Recipe) -> int:
        return 0
