"""The loss terms that a recipe may weigh together. Each has one class of the same kind in `worker/losses`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from app.recipe.base import Option, Paper, Positive


class LossTerm(Option):
    """What every term has: its weight in the objective, and whether it needs a teacher."""

    needs_teacher: ClassVar[bool] = True
    weight: Positive = 1.0
    """Factor of this term in the objective."""


class CrossEntropy(LossTerm):
    """Cross-entropy with the labels."""

    needs_teacher: ClassVar[bool] = False
    kind: Literal["cross-entropy"] = "cross-entropy"
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the target spread evenly over all classes."""


class Kd(LossTerm):
    """Forward Kullback-Leibler divergence of the softened distributions, times the squared temperature."""

    paper: ClassVar[Paper | None] = Paper("Distilling the Knowledge in a Neural Network", "1503.02531")
    kind: Literal["kd"] = "kd"
    temperature: float = Field(4.0, gt=0.0, le=1000.0)
    """Divides both sides' logits. Above 1000 the divergence is lost in rounding."""


class Nkd(LossTerm):
    """Normalised KD: the target's own term, plus cross-entropy over the renormalised non-target classes."""

    paper: ClassVar[Paper | None] = Paper(
        "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and "
        "Customized Soft Labels",
        "2303.13005",
    )
    kind: Literal["nkd"] = "nkd"
    gamma: float = Field(1.5, ge=0.0, le=1000.0)
    """Weight of the non-target part."""
    temperature: float = Field(1.0, gt=0.0, le=1000.0)
    """Divides the non-target logits of both sides."""


Loss = Annotated[CrossEntropy | Kd | Nkd, Field(discriminator="kind")]
LOSSES: tuple[type[LossTerm], ...] = (CrossEntropy, Kd, Nkd)
