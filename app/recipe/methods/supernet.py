"""Search for a student's architecture among the sub-networks of weight-shared networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from app.recipe.base import Answer, InputKind, Paper, Positive, Spec
from app.recipe.losses.features import AttentionRelation
from app.recipe.losses.taps import Taps
from app.recipe.methods.base import FIELD, LEARNING, MethodSpec
from app.recipe.optimizers import NormalizedGd
from app.recipe.problem import Problem
from app.recipe.students.architectures import Shrink
from app.recipe.students.sub_spaces import PRESETS, Preset, SubSpace

if TYPE_CHECKING:
    from app.recipe.job import JobSpec, Recipe


class Search(Spec):
    """What the chosen sub-network must keep to; without any, the one with the lowest loss is chosen."""

    max_parameters: int | None = Field(None, ge=1)
    """Most weights."""
    max_flops: int | None = Field(None, ge=1)
    """Most floating-point operations for one sample, as in the report."""
    max_latency_ms: Positive | None = None
    """Longest time for one sample, in milliseconds, measured on the exported ONNX graph in this worker; the median.
    Only sub-networks of the Pareto front are measured."""

    def keeps(self, parameters: int, flops: int) -> bool:
        """Whether a network of so many weights and operations is within the limits on these."""
        bounds = ((self.max_parameters, parameters), (self.max_flops, flops))
        return all(most is None or found <= most for most, found in bounds)


class Supernet(MethodSpec):
    """AutoDistil: one network for each sub-space of sizes shares its weights among all sub-networks of that space,
    which are its leading slices; after training all are compared on held-out texts, without training any of them again,
    and the best one that keeps to the limits is the student.

    In each step the largest and the smallest sub-network and `drawn` others of every sub-space minimise
    `recipe.losses`, and their gradients are added for one step of the optimizer. A sub-network of l of L layers has the
    layers floor(i L / l). The loss `attention-relation` compares its last layer, whatever its number is. `student` is
    `shrink` without sizes; its `init` is the start of the shared networks: the teacher's leading slices, or random.
    """

    paper: ClassVar[Paper | None] = Paper(
        "AutoDistil: Few-shot Task-agnostic Neural Architecture Search for Distilling Large Language Models",
        "2201.12507",
    )
    answers: ClassVar[frozenset[Answer]] = frozenset({"vectors", "classes", "labels", "numbers"})
    reads: ClassVar[tuple[InputKind, ...]] = ("texts",)
    divides: ClassVar[frozenset[str]] = frozenset({"attention-relation"})
    applies: ClassVar[str] = (
        "Encoders of texts, when the size of the student is open, or students of several sizes are wanted from one "
        "training."
    )
    cost: ClassVar[str] = (
        "`drawn` + 2 networks of each sub-space learn in a step, and up to 256 are evaluated on the held-out texts in "
        "the end."
    )
    kind: Literal["supernet"] = "supernet"
    spaces: Annotated[list[SubSpace | Preset], Field(min_length=1, max_length=8)] = ["small"]
    """Sub-spaces, each with shared weights of its own: a preset, which is one of the paper's, or values of the sizes.
    The job's student is the largest network of the first one until the search."""
    drawn: int = Field(2, ge=0, le=64)
    """Sub-networks of each sub-space that are drawn in a step, without replacement, beside the largest and the
    smallest."""
    search: Search = Search()
    """Limits of the search."""

    @property
    def sub_spaces(self) -> list[SubSpace]:
        return [PRESETS[space] if isinstance(space, str) else space for space in self.spaces]

    def passes(self, recipe: Recipe) -> int:
        """As if all sub-networks of a step had the size of the student."""
        return LEARNING * (self.drawn + 2)

    def learner_passes(self, recipe: Recipe) -> int:
        return self.passes(recipe)

    @property
    def learns_in_turn(self) -> bool:
        return True

    @property
    def same_networks(self) -> int:
        """One of each further sub-space, as if it had the size of the student."""
        return len(self.spaces) - 1

    def problems(self, job: JobSpec) -> Iterator[Problem]:
        if job.task_spec.per_token:
            yield Problem(f"{FIELD}.kind", f"is {self.kind}, which is not for {job.task}", "supervised")
        yield from self._student_problems(job)
        yield from self._loss_problems(job)
        for path, given, accepted in (
            ("recipe.stages", bool(job.recipe.stages), "none"),
            ("recipe.compile", job.recipe.compile, "false"),
        ):
            if given:
                found = f"is given, and the sub-networks of {self.kind} differ from step to step"
                yield Problem(path, found, accepted)
        if job.recipe.optimizer.stepping.groups:
            yield Problem("recipe.optimizer.groups", f"are given, and {self.kind} has several networks", "none")
        if isinstance(job.recipe.optimizer.stepping, NormalizedGd):
            found = f"is normalized-gd, which looks at the outputs of one network, and {self.kind} has several"
            yield Problem("recipe.optimizer.kind", found, "any other")
        if job.resources.sharding == "fsdp":
            found = f"is fsdp, and {self.kind} slices weights that are all there"
            yield Problem("resources.sharding", found, "none")
        if job.evaluation.keep == "best":
            found = f"is best, and {self.kind} chooses the student after the last step"
            yield Problem("evaluation.keep", found, "last")

    def search_problems(self, least: Sequence[tuple[int, int]]) -> Iterator[Problem]:
        if any(self.search.keeps(*cost) for cost in least):
            return
        smallest = " or ".join(f"{weights:,} weights and {flops:,} operations" for weights, flops in least)
        yield Problem(f"{FIELD}.search", "has limits that no sub-network keeps to", f"more than {smallest}")

    def _student_problems(self, job: JobSpec) -> Iterator[Problem]:
        if not isinstance(job.student, Shrink):
            found = f"is {job.student.architecture}, and {self.kind} needs a smaller copy of the teacher"
            yield Problem("student.architecture", found, "shrink, without sizes")
            return
        for field in job.student.sizes:
            found = f"is given, and the sizes are those of {FIELD}.spaces"
            yield Problem(f"student.{field}", found, "null")

    def _loss_problems(self, job: JobSpec) -> Iterator[Problem]:
        kinds = [term.kind for term in job.recipe.losses]
        if AttentionRelation.model_fields["kind"].default not in kinds:
            found = f"have no attention-relation, by which {self.kind} compares networks of any size"
            yield Problem("recipe.losses", found, "one such term, alone or with losses on outputs")
        for index, term in enumerate(job.recipe.losses):
            if term.taps() != Taps() and not isinstance(term, AttentionRelation):
                found = f"{term.kind} looks inside the student, whose sizes differ in {FIELD}: {self.kind}"
                yield Problem(f"recipe.losses[{index}].kind", found, "attention-relation, or a loss on outputs")
