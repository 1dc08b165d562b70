"""Robustness: whether a classifier of images is right when its images are attacked."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from app.recipe.base import Answer, InputKind, Paper
from app.recipe.diagnostics.base import DiagnosticSpec, MeasuredAttack


class Robustness(MeasuredAttack, DiagnosticSpec):
    """Accuracy of the student and of every teacher on held-out images as they are, attacked in one step (FGSM) and in
    several (PGD), each model by attacks on itself.

    The bound is that of both attacks; the other fields describe PGD. FGSM moves every pixel by the whole bound.
    """

    paper: ClassVar[Paper | None] = Paper("Towards Deep Learning Models Resistant to Adversarial Attacks", "1706.06083")
    answers: ClassVar[frozenset[Answer]] = frozenset({"classes"})
    reads: ClassVar[tuple[InputKind, ...]] = ("images",)
    applies: ClassVar[str] = "Classification of images."
    kind: Literal["robustness"] = "robustness"
    limit: int | None = Field(1000, ge=1)
    """Most held-out samples that are attacked, drawn by the job's seed; none: all of them."""

    def judged(self, left: int) -> int:
        return left if self.limit is None else min(left, self.limit)
