"""Adversarial training of image classifiers, alone or with a clean and a robust teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from app.recipe.attacks import AttackSpec
from app.recipe.base import Answer, InputKind, NonNegative, Paper
from app.recipe.losses.taps import Taps
from app.recipe.methods.base import FIELD, LEARNING, MethodSpec
from app.recipe.optimizers import NormalizedGd
from app.recipe.problem import Problem
from app.recipe.teachers.teacher import TeacherName

if TYPE_CHECKING:
    from app.recipe.job import JobSpec, Recipe

ROLES = ("clean_teacher", "robust_teacher")


class Adversarial(AttackSpec, MethodSpec):
    """Adversarial training of image classifiers: every batch is attacked by projected gradient descent on the student
    in evaluation mode, and the job's losses are computed on the attacked images (Madry et al., 1706.06083).

    With two teachers it is B-MTARD: the student also follows the robust teacher on the attacked images and the clean
    teacher on the images as they are. The loss is `label_weight` times the job's losses, plus w_robust KL(robust
    teacher at its temperature || student) on the attacked images, plus w_clean KL(clean teacher at its temperature ||
    student) on the clean ones. The weights move so that both divergences fall at the same pace, the temperatures so
    that both teachers have the same entropy. The paper's objective has no losses on labels: `label_weight: 0`.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Mitigating Accuracy-Robustness Trade-off via Balanced Multi-Teacher Adversarial Distillation", "2306.16170"
    )
    answers: ClassVar[frozenset[Answer]] = frozenset({"classes"})
    reads: ClassVar[tuple[InputKind, ...]] = ("images",)
    applies: ClassVar[str] = (
        "Images, when predictions must withstand small changes of the pixels; accuracy on unchanged images "
        "usually falls."
    )
    cost: ClassVar[str] = (
        "`steps` forward and backward passes of the student more: about eight times the time of a step with the "
        "defaults."
    )
    kind: Literal["adversarial"] = "adversarial"
    clean_teacher: TeacherName | None = None
    """Name of the teacher that runs on the images as they are; default: none, with no robust teacher either."""
    robust_teacher: TeacherName | None = None
    """Name of the teacher that runs on the attacked images; default: none, with no clean teacher either. Its outputs
    are not cached: it sees other images in every step."""
    label_weight: NonNegative = 1.0
    """Factor of the job's losses, which are computed on the attacked images; with 0, as in the paper, which needs
    teachers, they are only reported."""
    balance: Literal["temperature-and-loss", "loss"] = "temperature-and-loss"
    """Quantities that are balanced between the two teachers: temperatures and weights (B-MTARD), or only the weights,
    at fixed temperatures (MTARD, the conference paper)."""
    temperature: float = Field(1.0, ge=1.0, le=10.0)
    """Initial temperature of both teachers; it divides their logits, not the student's."""
    temperature_rate: NonNegative = 0.001
    """Change of a temperature in one step, multiplied by the schedule's factor of the learning rate; temperatures stay
    within 1 and 10."""
    weight_rate: float = Field(0.025, ge=0.0, le=1.0)
    """Share of the way to its target that a weight moves in one step, multiplied by the schedule's factor of the
    learning rate; both begin at 0.5."""
    scale: Literal["exact", "reference"] = "exact"
    """Divergences: exact, in nats, summed over the classes; or as in the authors' code, the mean over the classes, with
    1e-5 added to the teacher's probabilities in the logarithm."""

    @property
    def learns_from_teacher(self) -> bool:
        return self.teachers_are_named

    @property
    def teachers_are_named(self) -> bool:
        """Whether both teachers are named."""
        return self.clean_teacher is not None and self.robust_teacher is not None

    def batch_teachers(self) -> frozenset[str]:
        return frozenset({self.clean_teacher} if self.clean_teacher is not None else ())

    def uncached_teachers(self) -> frozenset[str]:
        return frozenset({self.robust_teacher} if self.robust_teacher is not None else ())

    def passes(self, recipe: Recipe) -> int:
        """A step of an attack takes a forward pass, and a backward pass to the pixels alone, which is half of a whole
        one."""
        attack = 2 * self.steps
        if not self.teachers_are_named:
            return attack + LEARNING
        return attack + 2 * LEARNING + (2 if recipe.accumulate > 1 else 0)  # both divergences are measured ahead

    def activation_copies(self, recipe: Recipe) -> float:
        """With teachers it learns from a batch and from the attacked batch at once."""
        return 2.0 if self.teachers_are_named else 1.0

    def problems(self, job: JobSpec) -> Iterator[Problem]:
        yield from self._teacher_problems(job)
        yield from self._loss_problems(job)
        yield from attack_problems(self, job)

    def _teacher_problems(self, job: JobSpec) -> Iterator[Problem]:
        names = [teacher.name for teacher in job.all_teachers]
        known = f"one of {', '.join(names)}" if names else "the name of a teacher of the job, which has none"
        for field, other in zip(ROLES, reversed(ROLES), strict=True):
            name = getattr(self, field)
            if name is None and getattr(self, other) is not None:
                yield Problem(f"{FIELD}.{field}", f"is missing beside {other}", f"{known}; or neither of the two")
            elif name is not None and name not in names:
                yield Problem(f"{FIELD}.{field}", f"there is no teacher {name!r}", known)
        if not self.teachers_are_named and self.label_weight == 0.0:
            found = "is 0, and without teachers nothing else is learned from"
            yield Problem(f"{FIELD}.label_weight", found, "above 0, or clean_teacher and robust_teacher")
        if self.teachers_are_named and isinstance(job.recipe.optimizer.stepping, NormalizedGd):
            found = f"normalized-gd divides by the gradient of losses on labels, and {FIELD} has the teachers' beside"
            yield Problem("recipe.optimizer.kind", found, "any other optimizer, or no teachers")

    def _loss_problems(self, job: JobSpec) -> Iterator[Problem]:
        """Losses that compare outputs on attacked images with values computed on other images."""
        accepted = "a loss on labels and outputs alone, such as cross-entropy, or in a stage before"
        for index, term in enumerate(job.recipe.losses):
            path = f"recipe.losses[{index}].kind"
            if term.needs_teacher:
                found = f"{term.kind} learns from a teacher, and with {FIELD}: {self.kind} only its own two terms do"
                yield Problem(path, found, f"{FIELD}.clean_teacher and robust_teacher, or {accepted}")
            elif term.taps() != Taps():
                found = f"{term.kind} looks inside the student, which {FIELD}: {self.kind} runs on attacked images"
                yield Problem(path, found, accepted)


def attack_problems(method: MethodSpec, job: JobSpec) -> Iterator[Problem]:
    """Problems of the rest of `job` with a method that attacks the student."""
    if job.recipe.compile:
        found = f"is on, but {method.kind} attacks the student in evaluation mode, which is not compiled"
        yield Problem("recipe.compile", found, "false")
    if job.resources.sharding == "fsdp":
        found = f"is fsdp, and {method.kind} attacks a student whose weights are all there"
        yield Problem("resources.sharding", found, "none")
