"""Deep mutual learning: several students that are trained together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from app.recipe.base import Answer, NonNegative, Paper
from app.recipe.losses.features import InheritanceExploration
from app.recipe.losses.taps import Taps
from app.recipe.methods.base import FIELD, LEARNING, MethodSpec
from app.recipe.problem import Problem
from app.recipe.students.architectures import Network

if TYPE_CHECKING:
    from app.recipe.job import JobSpec, Recipe

Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Mutual(MethodSpec):
    """Deep mutual learning: several students learn from the data and from each other's predictions; the first one is
    the job's student, which alone is evaluated during training and exported.

    Student k of K minimises the job's losses plus `weight` times the mean over the others j of KL(p_j || p_k), in which
    p_j is a constant; all of them have different initial weights and use the job's optimizer and schedule.
    """

    paper: ClassVar[Paper | None] = Paper("Deep Mutual Learning", "1706.00384")
    answers: ClassVar[frozenset[Answer]] = frozenset({"classes"})
    applies: ClassVar[str] = "Classification without a teacher, or beside one, with students of similar size."
    cost: ClassVar[str] = (
        "K students are trained: K times the memory and more than K times the time of a step; with `in-turn` "
        "updates K-1 further forward passes of each."
    )
    kind: Literal["mutual"] = "mutual"
    students: int = Field(2, ge=2, le=8)
    """Networks that are trained together, including the job's student."""
    architectures: Annotated[list[Network], Field(max_length=7)] = []
    """Architectures of the others, in their order; default: that of the student."""
    seeds: Annotated[list[Seed], Field(max_length=7)] = []
    """Seeds of the others' weights, in their order; default: derived from the job's seed."""
    weight: NonNegative = 1.0
    """Factor of the divergence from the others."""
    peer_reduce: Literal["mean", "sum"] = "mean"
    """Reduction of the divergences from several others: the mean as in the paper, or the sum as in the authors'
    code."""
    updates: Literal["in-turn", "together"] = "in-turn"
    """Whether students are updated one after the other, each with the updated predictions of the others (as in the
    paper, with K-1 more forward passes of every network in a step), or all with the predictions of one pass."""
    features: InheritanceExploration | None = None
    """Adds inheritance and exploration (IE-KD) between two students. Each encodes both halves of its feature, that at
    `student` of the pair or, the other student, at `teacher`; one code is pulled towards the other's code of the same
    half, and one pushed away, with the other's as constants. Encoders learn with their student and need no earlier
    stage; `factors` is half of the student's channels if omitted, and `name` and `teacher` keep their defaults."""

    def passes(self, recipe: Recipe) -> int:
        """Each network also predicts for the others: once, or for each of the others in its turn."""
        return LEARNING + (self.students - 1 if self.updates == "in-turn" else 1)

    def learner_passes(self, recipe: Recipe) -> int:
        return self.passes(recipe)

    @property
    def learns_in_turn(self) -> bool:
        return True

    @property
    def same_networks(self) -> int:
        return 0 if self.architectures else self.students - 1

    def networks(self) -> dict[str, Network]:
        return {f"{FIELD}.architectures[{index}]": network for index, network in enumerate(self.architectures)}

    def problems(self, job: JobSpec) -> Iterator[Problem]:
        others = self.students - 1
        for name, given in (("architectures", len(self.architectures)), ("seeds", len(self.seeds))):
            if given not in (0, others):
                yield Problem(f"{FIELD}.{name}", f"has {given} entries for {others} others", f"{others}, or none")
        if job.recipe.stages:
            yield Problem("recipe.stages", f"are given, and {self.kind} has no stages before the main training", "none")
        if job.recipe.compile:
            yield Problem("recipe.compile", f"is on, but the students of {self.kind} are not compiled", "false")
        for index, term in enumerate(job.recipe.losses):
            if term.taps() != Taps():
                found = f"{term.kind} looks inside the student, and {FIELD}: {self.kind} has several"
                yield Problem(f"recipe.losses[{index}].kind", found, "a loss on outputs")
        if self.features is not None:
            yield from self._features_problems(job)
        if job.resources.sharding == "fsdp":
            found = f"is fsdp, and the students of {self.kind} are not divided between processes so far"
            yield Problem("resources.sharding", found, "none")

    def _features_problems(self, job: JobSpec) -> Iterator[Problem]:
        assert self.features is not None  # the caller has looked
        for field in ("name", "teacher"):
            usual = InheritanceExploration.model_fields[field].default
            if getattr(self.features, field) != usual:
                found = "is given, and the features of two students need no autoencoder and no teacher"
                yield Problem(f"{FIELD}.features.{field}", found, f"{usual or 'null'}, or left out")
        if self.students != 2:
            yield Problem(f"{FIELD}.features", f"is given for {self.students} students", "2 students, or null")
        if job.task_spec.per_token or job.task_spec.reads == ("texts",):
            yield Problem(f"{FIELD}.features", f"compares maps, and networks for {job.task} have none", "null")
        for field, parts in (("recipe.accumulate", job.recipe.accumulate), ("resources.processes", job.resources.size)):
            if parts > 1:
                found = f"is {parts}, but the encoders of {FIELD}.features normalise over all samples of a batch"
                yield Problem(field, found, "1")
