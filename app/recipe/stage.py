"""A stage of training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.recipe.base import Spec
from app.recipe.losses import Loss
from app.recipe.optimizers import Optimizer, Schedule


class StageSpec(Spec):
    """A stage of training that comes before the main one, with an objective of its own."""

    losses: list[Loss] = Field(min_length=1, max_length=16)
    """Terms of this stage's objective."""
    epochs: int = Field(ge=1, le=100_000)
    """Passes over the training set."""
    optimizer: Optimizer | None = None
    """None: as in the main training. Its state begins anew with every stage."""
    schedule: Schedule | None = None
    """None: as in the main training, over the steps of this stage."""
    trains: Literal["student", "terms"] = "student"
    """`terms`: only what the losses themselves learn (adapters, autoencoders); the student is not touched."""
