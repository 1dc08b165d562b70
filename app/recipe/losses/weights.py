"""Weights of loss terms that change during training."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from app.recipe.base import NonNegative, Positive, Spec


class Ramp(Spec):
    """Change from one weight to another between two points of a stage; constant before and after."""

    first: NonNegative
    """Weight until `from_epoch`."""
    last: NonNegative
    """Weight from `to_epoch` on."""
    from_epoch: NonNegative = 0.0
    """Epochs of this stage before the weight begins to change."""
    to_epoch: Positive | None = None
    """Epochs of this stage after which the weight is `last`; none: at the stage's end."""

    @model_validator(mode="after")
    def _weighs_something(self) -> Self:
        if self.first == self.last == 0.0:
            raise ValueError("first and last must not both be 0")
        if self.to_epoch is not None and self.to_epoch <= self.from_epoch:
            raise ValueError("to_epoch must be above from_epoch")
        return self


class LinearWeight(Ramp):
    """A linear ramp: a warm-up when it rises."""

    kind: Literal["linear"]


class CosineWeight(Ramp):
    """Half a period of a cosine."""

    kind: Literal["cosine"]


def _is_ramp(weight: Any) -> str:
    return "ramp" if isinstance(weight, dict | Ramp) else "number"


Weight = Annotated[
    Annotated[Positive, Field(title="number"), Tag("number")]
    | Annotated[LinearWeight | CosineWeight, Field(discriminator="kind", title="ramp"), Tag("ramp")],
    Discriminator(_is_ramp),
]
"""A number, or a ramp."""


def weight_at(weight: float | LinearWeight | CosineWeight, epoch: float, epochs: float) -> float:
    """The weight after `epoch` of a stage's `epochs`, both with fraction."""
    if isinstance(weight, float | int):
        return weight
    end = epochs if weight.to_epoch is None else weight.to_epoch
    done = min(max((epoch - weight.from_epoch) / max(end - weight.from_epoch, 1e-9), 0.0), 1.0)
    if isinstance(weight, CosineWeight):
        done = (1.0 - math.cos(math.pi * done)) / 2.0
    return weight.first + (weight.last - weight.first) * done
