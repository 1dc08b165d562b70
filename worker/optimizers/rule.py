"""The settings of AdamP and SGDP in a common form."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class UpdateRule:
    """A group's settings in the form of the kernels' arguments."""

    rate: float
    """Size of a step; for Adam before the bias correction."""
    decay: float
    """Share of the weights that a step without projection subtracts."""
    keep: float
    """Factor of the average of gradients, to which `take` times the gradient is added."""
    take: float
    again: float | None
    """Nesterov: the update is `keep` times the average plus `again` times the gradient; none: it is the average."""
    betas: tuple[float, float] | None
    """Adam's, whose update is divided by the root of the average of squares; none: there is no such average."""
    project_buffer: bool
    """Whether the average is projected, too."""
    delta: float
    wd_ratio: float
    eps: float

    @property
    def numbers(self) -> tuple[float, ...]:
        """Factors for every element, in the order of the kernel's argument."""
        second = 0.0 if self.betas is None else self.betas[1]
        return tuple(map(float, (self.keep, self.take, self.again or 0.0, second, 1.0 - second, self.eps)))

    @property
    def log_betas(self) -> tuple[float, float]:
        """Logarithms of the betas, because 1 - beta is inexact in float32."""
        first, second = (math.log(beta) if beta else -math.inf for beta in self.betas or (0.0, 0.0))
        return first, second
