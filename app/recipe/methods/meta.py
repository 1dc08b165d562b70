"""Meta distillation: the teacher learns to teach, from how well the student that it teaches does on a quiz."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from app.recipe.base import Answer, Fraction, Paper, Positive
from app.recipe.losses import (
    Akl,
    BdKd,
    CrossEntropy,
    Dist,
    Dkd,
    Jsd,
    Kd,
    KdMse,
    KdPt,
    KdTopk,
    LogitMse,
    LossSpec,
    Nkd,
    Pkd,
    ReverseKl,
    SkewKl,
    SkewReverseKl,
)
from app.recipe.methods.base import FIELD, LEARNING, MethodSpec
from app.recipe.optimizers import NormalizedGd, Optimizer, Schedule, Sgd
from app.recipe.problem import Problem
from app.recipe.teachers.cache import NoCache

if TYPE_CHECKING:
    from app.recipe.job import JobSpec, Recipe

DIFFERENTIABLE: tuple[type[LossSpec], ...] = (
    CrossEntropy,
    Kd,
    Nkd,
    LogitMse,
    Dkd,
    Dist,
    BdKd,
    ReverseKl,
    Jsd,
    SkewKl,
    SkewReverseKl,
    Akl,
    KdMse,
    KdPt,
    KdTopk,
    Pkd,
)
"""Losses whose gradient at the student depends smoothly on the teacher, almost everywhere. That of
`tvd` does not depend on them at all (but for a sign), and the targets of `ferkd` are chosen by thresholds."""


class Meta(MethodSpec):
    """MetaDistil: the teacher is trained together with the student, to teach it better.

    Every step has three parts. A pilot update of the student on the batch, plain gradient descent of the rate
    `pilot_lr` on `recipe.losses`. A quiz: the cross-entropy of the pilot student on samples that are kept back from
    training, whose gradient at the teacher's weights goes through the pilot update; with it the teacher takes a step.
    Then the student, which is as before the pilot update, takes its step on the same batch, taught by the updated
    teacher.
    """

    paper: ClassVar[Paper | None] = Paper(
        "BERT Learns to Teach: Knowledge Distillation with Meta Learning", "2106.04570"
    )
    answers: ClassVar[frozenset[Answer]] = frozenset({"classes"})
    trains_teacher: ClassVar[bool] = True
    applies: ClassVar[str] = (
        "Classification with a teacher whose predictions help the student little, and with enough labels to keep "
        "some back for the quiz."
    )
    cost: ClassVar[str] = (
        "About five forward passes of the student and four of the teacher more for each sample, and a step on the "
        "quiz samples. Memory: 3 to 5 times that of a plain step, or half of that with `finite-difference`."
    )
    kind: Literal["meta"] = "meta"
    pilot_lr: Positive = 0.05
    """Rate of the pilot update, whatever the student's optimizer is: 0.05 for images in the authors' code, 5e-5 for
    texts."""
    quiz_fraction: Fraction = 0.1
    """Share of the training samples that is kept back for the quiz, of each class in proportion."""
    quiz_batch_size: int | None = Field(None, ge=1, le=1_048_576)
    """Samples of a quiz batch, or all of them if there are fewer; none: `recipe.batch_size`."""
    quiz_batches: int = Field(1, ge=1, le=64)
    """Quiz batches of a step, whose mean losses are averaged."""
    order: Literal["second", "finite-difference"] = "second"
    """`second`: the exact gradient, by differentiating that of the pilot update; it takes three to five times the
    memory of a plain step. `finite-difference`: the difference of two gradients, at the student's weights moved along
    the quiz's gradient by `epsilon` to either side, in about half of that memory."""
    epsilon: Positive = 0.01
    """Distance, in the space of the student's weights, by which `finite-difference` moves them."""
    teacher_optimizer: Optimizer = Sgd(lr=0.05, momentum=0.0)
    """Optimizer of the teacher; the authors use a rate of 0.05 for images, and 1e-5 for texts. At too high a rate the
    teacher loses what it knows, and the student with it."""
    teacher_schedule: Schedule | None = None
    """Learning-rate schedule of the teacher; none: that of the student."""

    @property
    def kept_back(self) -> float:
        return self.quiz_fraction

    def passes(self, recipe: Recipe) -> int:
        """The pilot update is a step, the derivative of its gradient along a direction takes two forward passes, and
        each sample of the quiz a step; then comes the step itself."""
        quiz = self.quiz_batches * (self.quiz_batch_size or recipe.batch_size) / recipe.batch_size
        return 2 * LEARNING + 2 + round(LEARNING * quiz)

    def learner_passes(self, recipe: Recipe) -> int:
        """The teacher learns, and predicts once more after its step."""
        return LEARNING + 1

    def learner_optimizer(self, recipe: Recipe) -> Optimizer:
        return self.teacher_optimizer

    def activation_copies(self, recipe: Recipe) -> float:
        """Without the teacher's; between those measured of convolutions (1.9, 0.7) and of attention (3.5, 1.3)."""
        return 2.7 if self.order == "second" else 1.0

    @property
    def differentiates_twice(self) -> bool:
        return self.order == "second"

    def problems(self, job: JobSpec) -> Iterator[Problem]:
        yield from self._teacher_problems(job)
        yield from self._loss_problems(job)
        recipe = job.recipe
        if recipe.stages:
            yield Problem("recipe.stages", f"are given, and {self.kind} has no stages before the main training", "none")
        if recipe.accumulate > 1:
            found = f"is {recipe.accumulate}, and {self.kind} differentiates the gradient of the whole batch at once"
            yield Problem("recipe.accumulate", found, "1")
        if self.order == "finite-difference" and recipe.precision == "bf16":
            found = f"is {self.order}, whose small differences are lost in the rounding of recipe.precision: bf16"
            yield Problem(f"{FIELD}.order", found, "second, or recipe.precision: fp32")
        if recipe.compile:
            found = f"is on, and {self.kind} runs the student with other weights, which is not compiled"
            yield Problem("recipe.compile", found, "false")
        if job.resources.sharding == "fsdp":
            found = f"is fsdp, and {self.kind} runs the student with other weights, which are not divided"
            yield Problem("resources.sharding", found, "none")

    def _teacher_problems(self, job: JobSpec) -> Iterator[Problem]:
        if len(job.all_teachers) > 1:
            yield Problem("teachers", f"are {len(job.all_teachers)}, and {self.kind} trains one", "one teacher")
        for index, teacher in enumerate(job.all_teachers):
            if teacher.lowered:
                found = f"is {teacher.precision}, and {self.kind} trains the teacher, with weights of 32 bits"
                yield Problem(f"{job.teacher_path(index)}.precision", found, "fp32, null")
        kept = job.teacher_cache
        if not (isinstance(kept, NoCache) or kept.exact):
            found = f"is lossy, but {self.kind} trains the teacher, so that nothing is cached"
            yield Problem("teacher_cache", found, "off, or dense in fp32, which has no effect")
        if isinstance(self.teacher_optimizer.stepping, NormalizedGd):
            found = (
                "is normalized-gd, which divides by a gradient at the outputs, and the teacher's loss has none there"
            )
            yield Problem(f"{FIELD}.teacher_optimizer.kind", found, "any other")
        if self.teacher_optimizer.stepping.groups:
            found = "are given, and groups are the student's"
            yield Problem(f"{FIELD}.teacher_optimizer.groups", found, "none")

    def _loss_problems(self, job: JobSpec) -> Iterator[Problem]:
        accepted = ", ".join(kind.model_fields["kind"].default for kind in DIFFERENTIABLE)
        for index, term in enumerate(job.recipe.losses):
            if not isinstance(term, DIFFERENTIABLE):
                found = f"is {term.kind}, whose gradient {self.kind} can't differentiate by the teacher's weights"
                yield Problem(f"recipe.losses[{index}].kind", found, accepted)
        if not any(term.needs_teacher for term in job.recipe.losses):
            found = f"have none that uses the teacher, so that the quiz of {self.kind} does not depend on it"
            yield Problem("recipe.losses", found, "one such as kd")
