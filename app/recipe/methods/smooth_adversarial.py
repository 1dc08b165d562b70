"""Smooth adversarial training of image classifiers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from app.recipe.attacks import AttackSpec
from app.recipe.base import Answer, InputKind, Paper, Positive
from app.recipe.methods.adversarial import attack_problems
from app.recipe.methods.base import LEARNING, MethodSpec
from app.recipe.problem import Problem

if TYPE_CHECKING:
    from app.recipe.job import JobSpec, Recipe


class SmoothAdversarial(AttackSpec, MethodSpec):
    """Smooth adversarial training: the losses are computed on the images as they are, and the student's margins are to
    change little when the images are attacked.

    The step minimises `recipe.losses` (of the paper: `comp-sum`) + `smoothness_weight` times the mean over the images
    of the largest ||D(x + d) - D(x)||_2 with |d| <= `bound`, D(x)_k = f_y(x) - f_k(x): margins of the label y against
    each class k. The largest is sought by projected gradient descent on the student in evaluation mode; learning goes
    through both terms. A label that is a distribution counts as its likeliest class.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Cross-Entropy Loss Functions: Theoretical Analysis and Applications", "2304.07288"
    )
    answers: ClassVar[frozenset[Answer]] = frozenset({"classes"})
    reads: ClassVar[tuple[InputKind, ...]] = ("images",)
    applies: ClassVar[str] = (
        "Images, when predictions must withstand small changes of the pixels; also beside losses of teachers, which "
        "see the images as they are."
    )
    cost: ClassVar[str] = (
        "`steps` forward and backward passes of the student more, and one to learn from the attacked images."
    )
    kind: Literal["smooth-adversarial"] = "smooth-adversarial"
    smoothness_weight: Positive = 1.0
    """Weight of the change of the margins."""
    random_start: Literal["uniform", "normal"] = "uniform"
    """Where an attack begins: anywhere within the bound, or at the image with normal noise of standard deviation 0.001
    of the pixels' range. Not at the image itself, where the change is 0 in all directions."""

    def passes(self, recipe: Recipe) -> int:
        """The margins of the images as they are, the attack's steps (see `Adversarial.passes`), and two passes to learn
        from."""
        return 1 + 2 * self.steps + 2 * LEARNING

    def activation_copies(self, recipe: Recipe) -> float:
        """It learns from a batch and from the attacked batch at once."""
        return 2.0

    def problems(self, job: JobSpec) -> Iterator[Problem]:
        yield from attack_problems(self, job)
