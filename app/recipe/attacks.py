"""Attacks on classifiers of images: changes of pixels, within a bound, that raise the loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from app.recipe.base import Spec


class AttackSpec(Spec):
    """Fields of projected gradient descent (PGD) on the pixels of an image, bounded in the L-infinity norm."""

    bound: float = Field(8 / 255, gt=0.0, le=1.0)
    """Largest change of a pixel, as a share of the pixels' range."""
    step_size: float = Field(2 / 255, gt=0.0, allow_inf_nan=False, validate_default=True)
    """Change of a pixel in one step, as a share of the pixels' range; at most twice the bound."""
    steps: int = Field(10, ge=1, le=1000)
    """Gradient steps of an attack."""
    random_start: Literal["normal", "uniform", "none"] = "normal"
    """Where an attack begins: at the image with normal noise of standard deviation 0.001 of the pixels' range, anywhere
    within the bound (`uniform`), or at the image itself."""

    @field_validator("step_size")
    @classmethod
    def _stays_near(cls, step_size: float, info: ValidationInfo) -> float:
        bound = info.data.get("bound")
        if bound is not None and step_size > 2 * bound:
            raise ValueError(f"must be at most twice the bound, {2 * bound:g}: one step would end at it from anywhere")
        return step_size
