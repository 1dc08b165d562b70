"""Knowledge transfer with boundary supporting samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from app.recipe.base import Answer, InputKind, NonNegative, Paper, Positive, Spec
from app.recipe.clip import Clip
from app.recipe.losses.base import Temperature
from app.recipe.methods.base import FIELD, MethodSpec
from app.recipe.problem import Problem

if TYPE_CHECKING:
    from app.recipe.job import JobSpec, Recipe


class EpochRamp(Spec):
    """A weight that changes linearly from epoch to epoch: in epoch e of E, counted from 1, it is
    last + (first - last) max(1 - e / (until E), 0)."""

    first: NonNegative
    """Weight that it would have before the first epoch."""
    last: NonNegative
    """Weight in the end."""
    until: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the epochs after which it is `last`."""

    def in_epoch(self, epoch: int, epochs: int) -> float:
        """The weight in an epoch, counted from 1, of so many."""
        return self.last + (self.first - self.last) * max(1.0 - epoch / (self.until * epochs), 0.0)


class BoundarySamples(MethodSpec):
    """Knowledge transfer with boundary supporting samples: samples that student and teacher both classify correctly are
    moved just across the teacher's decision boundary, and the student learns the teacher's predictions there, too.

    The step minimises `recipe.losses` (of the paper: cross-entropy) + a S(t(x), s(x)) + b S(t(x'), s(x')). S is the
    mean of -sum softmax(t / T) log softmax(s / T), x the batch, x' the moved samples; a and b fall from epoch to epoch.
    The teacher computes in fp32 whatever the recipe's `precision` is.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Knowledge Distillation with Adversarial Samples Supporting Decision Boundary", "1805.05532"
    )
    answers: ClassVar[frozenset[Answer]] = frozenset({"classes"})
    reads: ClassVar[tuple[InputKind, ...]] = ("images",)
    applies: ClassVar[str] = (
        "Images with a teacher, when the student should have its decision boundaries, as with few samples."
    )
    cost: ClassVar[str] = (
        "Up to `steps` forward and backward passes of the teacher for up to `attack_size` samples of a batch, in "
        "the epochs in which `bss_weight` is above 0."
    )
    kind: Literal["boundary-samples"] = "boundary-samples"
    temperature: Temperature = 3.0
    """Divides both sides' logits; the terms are not multiplied by its square."""
    kd_weight: EpochRamp = EpochRamp(first=4.0, last=1.0)
    """Weight a of the teacher's predictions on the batch; by default 1 + 3 max(1 - e/E, 0) in epoch e of E."""
    bss_weight: EpochRamp = EpochRamp(first=2.0, last=0.0, until=0.75)
    """Weight b of the teacher's predictions on the moved samples; by default 2 max(1 - 4/3 e/E, 0). In epochs in which
    it is 0 no samples are moved."""
    attack_size: int = Field(64, ge=1, le=65_536)
    """Most samples of a batch that are moved: of those that both sides classify correctly the ones whose predictions
    for the other classes differ most, by the sum of squares."""
    steps: int = Field(10, ge=1, le=1000)
    """Largest number of steps in which a sample is moved; it stops once the teacher's predicted class changes."""
    alpha: Positive = 0.3
    """Length of a step per difference between the logits of the sample's class and of the class that it is moved to."""
    clip: Clip = None
    """Lowest and highest value that the teacher's network is given for a pixel, in normalised units; the paper's
    program has [-2.5, 2.5], for CIFAR. None: the range of pixels, 0 to 255 of 8 bits and 0 to 1 of other images."""

    @property
    def learns_from_teacher(self) -> bool:
        return True

    def activation_copies(self, recipe: Recipe) -> float:
        """It learns from a batch and from its moved samples at once."""
        return 1.0 + min(self.attack_size / recipe.batch_size, 1.0)

    def problems(self, job: JobSpec) -> Iterator[Problem]:
        teachers = job.all_teachers
        if len(teachers) != 1:
            param, found = ("teachers", f"are {len(teachers)}") if teachers else ("teacher", "is missing")
            yield Problem(param, f"{found}, and {self.kind} moves samples through a teacher", "one teacher")
        elif teachers[0].lowered:
            found = f"is {teachers[0].precision}, too coarse for the gradients that {self.kind} moves samples by"
            yield Problem(f"{job.teacher_path(0)}.precision", found, "fp32, or null")
        epochs = job.recipe.epochs
        if not any(self.bss_weight.in_epoch(epoch, epochs) for epoch in (1, epochs)):
            found = f"is 0 in each of {epochs} epochs, so that no sample would be moved"
            yield Problem(
                f"{FIELD}.bss_weight", found, "a ramp that is above 0 in the first or last epoch, or more epochs"
            )
        if job.recipe.compile:
            found = f"is on, but the moved samples of {self.kind} are never equally many, so that nothing is compiled"
            yield Problem("recipe.compile", found, "false")
        if job.resources.sharding == "fsdp":
            found = f"is fsdp, and the gradients of {self.kind} at the teacher's inputs need the whole of its weights"
            yield Problem("resources.sharding", found, "none")
