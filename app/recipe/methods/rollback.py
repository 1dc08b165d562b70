"""Rolling-back fine-tuning: the higher parts of a pretrained network return to their first weights, several times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from app.recipe.base import Answer, Paper, Positive
from app.recipe.methods.base import FIELD, MethodSpec
from app.recipe.optimizers.base import ParameterPattern
from app.recipe.problem import Problem
from app.recipe.stage import StageSpec
from app.recipe.students.architectures import Pretrained

if TYPE_CHECKING:
    from app.recipe.job import JobSpec, Recipe

Patterns = Annotated[list[ParameterPattern], Field(min_length=1, max_length=32)]


class Rollback(MethodSpec):
    """Rolling-back fine-tuning of a pretrained student: several periods of `recipe.epochs` each.

    Period 1 trains everything. Before period p, everything returns to its pretrained values, statistics of batch norm
    included, but for the lowest p-1 groups and the last layer, which keep what they have learned. In every period the
    optimizer and the schedule begin anew; `recipe.optimizer.lr` is the rate of what was rolled back and of the last
    layer.
    """

    plain_steps: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = Paper(
        "Backbone Can Not be Trained at Once: Rolling Back to Pre-trained Network for Person Re-Identification",
        "1901.06140",
    )
    answers: ClassVar[frozenset[Answer]] = frozenset({"classes", "labels", "numbers"})
    applies: ClassVar[str] = (
        "A pretrained student on a small data set, where fine-tuning all layers at once forgets too much."
    )
    cost: ClassVar[str] = "`periods` times the steps, and a copy of the pretrained weights in main memory."
    kind: Literal["rollback"] = "rollback"
    periods: int = Field(4, ge=2, le=8)
    """Periods of training; the paper has 4."""
    groups: Annotated[list[Patterns], Field(max_length=7)] = []
    """Groups of the student's parameters, from the lowest: in each, names of parameters or paths of modules, with `*`
    for any text. None given: what lies before the blocks of the network, then each of its stages, or thirds of its
    blocks where it has more than four."""
    head: list[ParameterPattern] = Field(default=[], max_length=32)
    """The last layer, which is never rolled back, in the same form; none given: the last linear layer that gives the
    outputs."""
    kept_lr_ratio: Positive = 0.1
    """Learning rate of the groups that were kept, as a share of `recipe.optimizer.lr`."""
    head_lr_ratio: Positive = 10.0
    """The same of the last layer in period 1, where it is new."""

    def main_stages(self, recipe: Recipe) -> list[StageSpec]:
        return super().main_stages(recipe) * self.periods

    def problems(self, job: JobSpec) -> Iterator[Problem]:
        if not isinstance(job.student, Pretrained):
            found = f"is {job.student.architecture}, and {self.kind} returns to the weights of a pretrained student"
            yield Problem("student.architecture", found, "pretrained")
        if self.groups and len(self.groups) < self.periods - 1:
            found = f"has {len(self.groups)} groups, and each of {self.periods - 1} periods keeps one more"
            yield Problem(f"{FIELD}.groups", found, f"{self.periods - 1} groups or more, or none")
        if job.recipe.stages:
            yield Problem("recipe.stages", f"are given, and {self.kind} has stages of its own", "none")
        if job.recipe.optimizer.stepping.groups:
            found = f"are given, and {self.kind} sets the rates of its groups itself"
            yield Problem("recipe.optimizer.groups", found, f"none; see {FIELD}.groups, kept_lr_ratio, head_lr_ratio")
        if job.recipe.max_steps is not None:
            yield Problem("recipe.max_steps", f"is given, and {self.kind} has periods of whole epochs", "none")
        if job.resources.sharding == "fsdp":
            found = f"is fsdp, and {self.kind} keeps the pretrained weights whole"
            yield Problem("resources.sharding", found, "none")
