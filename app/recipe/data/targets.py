"""Transforms of the training targets, applied once before training. Evaluation targets are never changed."""

from __future__ import annotations

from typing import ClassVar, Literal

from app.recipe.base import Fraction, Option, Paper, Positive

KD_LOSS = Paper("Facial Landmark Points Detection Using Knowledge Distillation-Based Neural Networks", "2111.07047")


class SoftLandmarks(Option):
    """Softer targets for a tolerant teacher: the labels, projected on their main directions of variation.

    The directions are those of a principal component analysis of the training targets; a target's offset from the mean
    is clipped along each, and its offset in all other directions is removed.
    """

    paper: ClassVar[Paper | None] = KD_LOSS
    kind: Literal["soft-landmarks"] = "soft-landmarks"
    variance: Fraction = 0.9
    """Share of the targets' variance that the directions must explain; less makes a more tolerant teacher."""
    clip: Positive = 3.0
    """Largest offset from the mean in each direction, in standard deviations."""
