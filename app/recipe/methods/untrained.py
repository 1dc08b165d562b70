"""No training: the student is evaluated and analysed as it starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from app.recipe.base import Answer
from app.recipe.methods.base import MethodSpec
from app.recipe.problem import Problem

if TYPE_CHECKING:
    from app.recipe.job import JobSpec


class Untrained(MethodSpec):
    """No step is taken: a stored model is evaluated on the data as it is, and its diagnostics are run, beside those of
    teachers if there are any. The artifacts are the report and its pictures; no model is published.
    """

    answers: ClassVar[frozenset[Answer]] = frozenset({"classes"})
    applies: ClassVar[str] = "Diagnostics of a stored classifier, without training another."
    cost: ClassVar[str] = "No training; evaluation and diagnostics alone."
    minimises_losses: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    kind: Literal["untrained"] = "untrained"

    @property
    def learns_from_teacher(self) -> bool:
        """Teachers are analysed beside it."""
        return True

    def problems(self, job: JobSpec) -> Iterator[Problem]:
        if job.start is None or job.start_path != "student":
            found = f"is {job.student.architecture}, and {self.kind} evaluates a stored model"
            yield Problem("student.architecture", found, "pretrained")
        if job.recipe.stages:
            yield Problem("recipe.stages", f"is given, and {self.kind} trains nothing", "none")
        if job.resources.size > 1:
            yield Problem("resources.processes", f"is {job.resources.size}, and {self.kind} trains nothing", "1")
        if job.export != ["safetensors"]:
            yield Problem("export", f"has files to write, and {self.kind} publishes no model", "[safetensors]")
        if job.recipe.ema_decay is not None:
            yield Problem("recipe.ema_decay", f"is given, and {self.kind} trains nothing", "none")
