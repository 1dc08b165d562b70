"""AdamW."""

from __future__ import annotations

from typing import ClassVar, Literal

from app.recipe.base import NonNegative, Paper, Positive
from app.recipe.optimizers.base import Betas, OptimizerSpec


class AdamW(OptimizerSpec):
    """Adam with decoupled weight decay."""

    paper: ClassVar[Paper | None] = Paper("Decoupled Weight Decay Regularization", "1711.05101")
    kind: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    """Peak learning rate."""
    betas: Betas = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: Positive = 1e-8
    """Added to the divisor, to avoid division by zero."""
    weight_decay: NonNegative = 0.01
    """Share of every weight that a step subtracts, times the learning rate."""

    def state_size(self, parameters: int, hidden_weights: int) -> int:
        return 2 * parameters
