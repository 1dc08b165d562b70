"""Optimizers and learning-rate schedules. Each optimizer has one class of the same kind in `worker/optimizers`."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from app.recipe.optimizers.adamp import AdamP
from app.recipe.optimizers.adamw import AdamW
from app.recipe.optimizers.base import OptimizerSpec
from app.recipe.optimizers.nap import Inner, NormalizeAndProject
from app.recipe.optimizers.normalized_gd import NormalizedGd
from app.recipe.optimizers.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    Linear,
    MultiStep,
    Schedule,
    ScheduleOption,
)
from app.recipe.optimizers.sgd import Sgd
from app.recipe.optimizers.sgdp import SgdP
from app.recipe.optimizers.sinkgd import SinkGd
from app.recipe.optimizers.swan import Swan

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "AdamP",
    "AdamW",
    "Constant",
    "Cosine",
    "Inner",
    "Linear",
    "MultiStep",
    "NormalizeAndProject",
    "NormalizedGd",
    "Optimizer",
    "OptimizerSpec",
    "Schedule",
    "ScheduleOption",
    "Sgd",
    "SgdP",
    "SinkGd",
    "Swan",
]

Optimizer = Annotated[
    Sgd | AdamW | AdamP | SgdP | SinkGd | Swan | NormalizeAndProject | NormalizedGd, Field(discriminator="kind")
]
OPTIMIZERS: tuple[type[OptimizerSpec], ...] = get_args(get_args(Optimizer)[0])
"""All kinds."""
