"""The settings of AdamP and SGDP as numbers, the same for both."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """A group's settings as the kernels take them."""

    rate: float
    """Size of a step; of Adam's before it is corrected for moments that began at 0."""
    decay: float
    """Part of the weights that a step takes away where it isn't projected."""
    keep: float
    """Of the average of gradients, into which a gradient goes times `take`."""
    take: float
    again: float | None
    """Nesterov: the update is `keep` times the average and so much of the gradient; none: it is the average."""
    betas: tuple[float, float] | None
    """Of Adam, whose update is divided by the root of the average of squares; none: there is no such average."""
    project_buffer: bool
    """Whether the average loses what the update loses."""
    delta: float
    wd_ratio: float
    eps: float

    @property
    def numbers(self) -> tuple[float, ...]:
        """What every element is moved by, in the order of the kernel."""
        second = 0.0 if self.betas is None else self.betas[1]
        return tuple(map(float, (self.keep, self.take, self.again or 0.0, second, 1.0 - second, self.eps)))

    @property
    def log_betas(self) -> tuple[float, float]:
        """Their logarithms, as float32 holds little of 1 - beta."""
        first, second = (math.log(beta) if beta else -math.inf for beta in self.betas or (0.0, 0.0))
        return first, second
