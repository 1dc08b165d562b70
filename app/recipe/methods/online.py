"""Online distillation: student and teacher learn together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from app.recipe.base import Answer, Paper
from app.recipe.losses import CrossEntropy, Loss, ReverseKl
from app.recipe.losses.taps import Taps
from app.recipe.methods.base import FIELD, MethodSpec
from app.recipe.optimizers import NormalizedGd, Optimizer, Schedule
from app.recipe.problem import Problem
from app.recipe.students.architectures import Network
from app.recipe.teachers.cache import NoCache

if TYPE_CHECKING:
    from app.recipe.job import JobSpec, Recipe


class Online(MethodSpec):
    """Online distillation: teacher and student learn together from every batch, each from its own losses, with an
    optimizer of its own; the logits of one forward pass of each serve the losses of both.

    The student minimises `recipe.losses`, in which the teacher's logits are constant; the teacher minimises `losses`,
    in which it takes the student's side, and the student, called `student`, with constant logits the teacher's. With
    the losses `cross-entropy` and `bd-kd` for the student, and the defaults here for the teacher, this is BD-KD.
    """

    paper: ClassVar[Paper | None] = Paper(
        "BD-KD: Balancing the Divergences for Online Knowledge Distillation", "2212.12965"
    )
    answers: ClassVar[frozenset[Answer]] = frozenset({"classes", "labels"})
    trains_teacher: ClassVar[bool] = True
    applies: ClassVar[str] = (
        "Classification, when the teacher is to adapt to the data and the student, or no trained teacher exists; "
        "with bd-kd, when the probabilities matter and not only the predicted class."
    )
    cost: ClassVar[str] = (
        "A forward and a backward pass of the teacher in every step, its gradients and its optimizer state; its "
        "outputs can't be cached."
    )
    kind: Literal["online"] = "online"
    losses: Annotated[list[Loss], Field(min_length=1, max_length=16)] = [CrossEntropy(), ReverseKl()]
    """Terms of the teacher's objective. `reverse-kl` is KL(teacher || student) here: BD-KD's regulariser, whose factor
    alpha T^2 is the term's `weight` at a `temperature` T."""
    teacher: Network | None = None
    """The network of a teacher with random weights, for a job without a `teacher`; none: it starts as the job's
    teacher."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    """Seed of these weights; none: it follows from the job's seed."""
    teacher_optimizer: Optimizer | None = None
    """Optimizer of the teacher; none: that of the student."""
    teacher_schedule: Schedule | None = None
    """Learning-rate schedule of the teacher, over the same steps; none: that of the student."""

    def learner_optimizer(self, recipe: Recipe) -> Optimizer:
        return self.teacher_optimizer or recipe.optimizer

    def networks(self) -> dict[str, Network]:
        return {} if self.teacher is None else {f"{FIELD}.teacher": self.teacher}

    def objectives(self) -> dict[str, list[Loss]]:
        return {f"{FIELD}.losses": self.losses}

    def problems(self, job: JobSpec) -> Iterator[Problem]:
        yield from self._teacher_problems(job)
        for path, terms in {"recipe.losses": job.recipe.losses, **self.objectives()}.items():
            for index, term in enumerate(terms):
                if term.taps() != Taps():
                    found = f"{term.kind} looks inside the networks, and both learn"
                    yield Problem(f"{path}[{index}].kind", found, "a loss on outputs")
        if job.recipe.stages:
            yield Problem("recipe.stages", f"are given, and {self.kind} has no stages before the main training", "none")
        if job.recipe.compile:
            yield Problem("recipe.compile", f"is on, but the networks of {self.kind} are not compiled", "false")
        if job.resources.sharding == "fsdp":
            found = f"is fsdp, and the networks of {self.kind} are not divided between processes so far"
            yield Problem("resources.sharding", found, "none")
        if self.teacher_optimizer and isinstance(self.teacher_optimizer.stepping, NormalizedGd):
            yield from self._normalized_gd_problems(job)

    def _normalized_gd_problems(self, job: JobSpec) -> Iterator[Problem]:
        if not job.task_spec.fits(NormalizedGd):
            yield Problem(
                f"{FIELD}.teacher_optimizer.kind", job.task_spec.refusal(NormalizedGd), "an optimizer for this task"
            )
        if job.resources.size > 1:
            found = "normalized-gd looks at the outputs of a whole batch, and each process has a share"
            yield Problem(f"{FIELD}.teacher_optimizer.kind", found, "any other, or one process")

    def _teacher_problems(self, job: JobSpec) -> Iterator[Problem]:
        if len(job.all_teachers) > 1:
            yield Problem("teachers", f"are several, and {self.kind} trains one", "one teacher")
        if self.teacher is not None and job.all_teachers:
            found = f"is given beside {job.teacher_path(0)}, as which the teacher starts"
            yield Problem(f"{FIELD}.teacher", found, "one of the two")
        if self.teacher is None and not job.all_teachers:
            found = f"is missing, and {self.kind} needs one to train"
            yield Problem("teacher", found, f"the id of a model, or {FIELD}.teacher")
        if self.seed is not None and self.teacher is None:
            yield Problem(f"{FIELD}.seed", "is given, but no weights of the teacher are drawn", "null")
        if not job.all_teachers and not any(term.needs_teacher for term in job.recipe.losses):
            yield Problem("recipe.losses", "have none that learns from the teacher", "one such as bd-kd or kd")
        as_the_student = (None, "fp32") if job.recipe.precision == "fp32" else (None,)
        for index, teacher in enumerate(job.all_teachers):
            if teacher.precision not in as_the_student:
                found = f"is {teacher.precision}, and a teacher that learns computes as the student does"
                yield Problem(f"{job.teacher_path(index)}.precision", found, "null")
        kept = job.teacher_cache
        if job.all_teachers and not (isinstance(kept, NoCache) or kept.exact):
            found = "loses something, but the answers of a teacher that learns change, so that nothing is kept"
            yield Problem("teacher_cache", found, "dense in fp32, which is not used, or off")
