"""How the targets to train on are changed, once, before training. Those to evaluate on never are."""

from __future__ import annotations

from typing import ClassVar, Literal

from app.recipe.base import Fraction, Option, Paper, Positive

KD_LOSS = Paper("Facial Landmark Points Detection Using Knowledge Distillation-Based Neural Networks", "2111.07047")


class SoftLandmarks(Option):
    """Softer targets for a tolerant teacher: the labels, seen through their main directions of variation alone.

    The directions are those of a principal component analysis of the training targets; what a target is off the mean
    along each is clipped, and what it is off in all other directions is lost.
    """

    paper: ClassVar[Paper | None] = KD_LOSS
    kind: Literal["soft-landmarks"] = "soft-landmarks"
    variance: Fraction = 0.9
    """Share of the targets' variance that the directions must explain; less makes a more tolerant teacher."""
    clip: Positive = 3.0
    """How far from the mean a target may be in any of the directions, in its standard deviations."""
