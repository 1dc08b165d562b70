"""Decision boundary: whether a student decides between classes where its teacher does."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from app.recipe.base import Answer, InputKind, Paper, Positive
from app.recipe.clip import Clip
from app.recipe.diagnostics.base import DiagnosticSpec


class DecisionBoundary(DiagnosticSpec):
    """Similarity of the student's decision boundaries to those of each teacher: held-out images that both classify
    correctly are moved to the boundary with another class, once through the teacher and once through the student, and
    the two moves are compared.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Knowledge Distillation with Adversarial Samples Supporting Decision Boundary", "1805.05532"
    )
    answers: ClassVar[frozenset[Answer]] = frozenset({"classes"})
    reads: ClassVar[tuple[InputKind, ...]] = ("images",)
    applies: ClassVar[str] = "Classification of images with a teacher."
    needs_teacher: ClassVar[bool] = True
    kind: Literal["decision-boundary"] = "decision-boundary"
    targets: int | None = Field(9, ge=1)
    """Most classes that an image is moved to: those that the teacher takes for likeliest beside its own; none: all."""
    steps: int = Field(50, ge=1, le=1000)
    """Largest number of steps of a move."""
    alpha: Positive = 0.3
    """Length of a step per difference between the logits of the image's class and of the class that it is moved to."""
    clip: Clip = None
    """Lowest and highest value that the student's network is given for a pixel, in normalised units; none: the range of
    pixels, 0 to 255 of 8 bits and 0 to 1 of other images."""
    limit: int | None = Field(256, ge=1)
    """Most held-out samples that are looked at, drawn by the job's seed; none: all of them."""

    def judged(self, left: int) -> int:
        return left if self.limit is None else min(left, self.limit)
