"""SGDP."""

from __future__ import annotations

from typing import ClassVar, Literal

from app.recipe.base import NonNegative, Paper, Positive, Share
from app.recipe.optimizers.base import PROJECTION, Beta, OptimizerSpec


class SgdP(OptimizerSpec):
    """SGD whose update has no radial part on scale-invariant weights."""

    paper: ClassVar[Paper | None] = PROJECTION
    kind: Literal["sgdp"] = "sgdp"
    lr: Positive
    """Peak learning rate."""
    momentum: Beta = 0.0
    """Decay of the running sum of gradients; 0: plain gradient descent."""
    dampening: Share = 0.0
    """Share of a new gradient that the momentum leaves out."""
    eps: Positive = 1e-8
    """Added to the divisor, to avoid division by zero."""
    weight_decay: NonNegative = 0.0
    """Decoupled; divided by (1 - momentum) to match coupled decay in strength."""
    delta: NonNegative = 0.1
    """Threshold of the cosine test for scale invariance."""
    wd_ratio: Share = 0.1
    """Factor of the weight decay on projected tensors."""
    nesterov: bool = False
    """Whether the step looks ahead along the momentum (Nesterov's)."""
    project_buffer: bool = True
    """True: the stored momentum is projected too, as in the authors' code; false: only the step, as in the paper."""
