"""Fields and papers that several optimizers share."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from app.recipe.base import NonNegative, Option, Paper, Positive

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Betas = Annotated[tuple[Beta, Beta], Field(strict=False)]
PROJECTION = Paper("AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights", "2006.08217")


class OptimizerSpec(Option):
    """Base of the optimizers."""

    def state_size(self, parameters: int, hidden_weights: int) -> int:
        """Numbers in its state for `parameters` weights, `hidden_weights` of them in the matrices of hidden layers."""
        return parameters


class Normalized(OptimizerSpec):
    """Base of the optimizers of normalised gradients: Adam for all but the weight matrices of hidden layers."""

    applies: ClassVar[str] = "Networks with hidden layers; whatever is no weight matrix of one is trained by Adam."
    lr: Positive
    """Peak learning rate of the parameters that Adam trains."""
    matrix_ratio: Positive
    """Rate of hidden layers' matrices as a share of `lr`; kernels of convolutions are matrices of (channels, rest)."""
    betas: Betas = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: Positive = 1e-8
    """Added to the divisor, to avoid division by zero."""
    weight_decay: NonNegative = 0.0
    """Decoupled from the gradient, of all parameters; the papers have none."""

    def state_size(self, parameters: int, hidden_weights: int) -> int:
        return 2 * (parameters - hidden_weights)
