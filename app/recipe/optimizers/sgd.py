"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from app.recipe.base import NonNegative, Positive
from app.recipe.optimizers.base import Beta, OptimizerSpec


class Sgd(OptimizerSpec):
    """Stochastic gradient descent with momentum; the weight decay is coupled (added to the gradient)."""

    kind: Literal["sgd"] = "sgd"
    lr: Positive
    """Peak learning rate."""
    momentum: Beta = 0.9
    """Decay of the running sum of gradients; 0: plain gradient descent."""
    nesterov: bool = False
    """Whether the step looks ahead along the momentum (Nesterov's)."""
    weight_decay: NonNegative = 0.0
    """Coefficient of the L2 penalty that is added to the gradient."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov needs a momentum above 0")
        return self

    def state_size(self, parameters: int, hidden_weights: int) -> int:
        return parameters if self.momentum else 0
