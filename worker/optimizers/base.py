"""What our own optimizers share: one step is one update of every parameter that has a gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class PerParameter(torch.optim.Optimizer, ABC):
    """An optimizer that updates each parameter by itself; those without a gradient are left alone and keep no state."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # as torch's own
        """Take one step; `closure`, when given, computes loss and gradients anew and its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    @abstractmethod
    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Change `weight` in place."""
