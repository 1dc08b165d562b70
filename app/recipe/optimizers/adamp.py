"""AdamP."""

from __future__ import annotations

from typing import ClassVar, Literal

from app.recipe.base import NonNegative, Paper, Positive, Share
from app.recipe.optimizers.base import PROJECTION, Betas, OptimizerSpec


class AdamP(OptimizerSpec):
    """Adam whose update has no radial part on scale-invariant weights."""

    paper: ClassVar[Paper | None] = PROJECTION
    kind: Literal["adamp"] = "adamp"
    lr: Positive = 1e-3
    """Peak learning rate."""
    betas: Betas = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: Positive = 1e-8
    """Added to the divisor, to avoid division by zero."""
    weight_decay: NonNegative = 0.0
    """Decoupled from the gradient."""
    delta: NonNegative = 0.1
    """Threshold of the cosine test for scale invariance."""
    wd_ratio: Share = 0.1
    """Factor of the weight decay on projected tensors."""
    nesterov: bool = False
    """Whether the step looks ahead along the momentum (Nesterov's)."""

    def state_size(self, parameters: int, hidden_weights: int) -> int:
        return 2 * parameters
