"""Adam's moments (1412.6980) over lists of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from worker.optimizers.base import State


def fresh_moments(weight: Tensor) -> State:
    """`step` (float32 scalar on the CPU), `exp_avg` and `exp_avg_sq` (as `weight`)."""
    return {
        "step": torch.zeros((), dtype=torch.float32),
        "exp_avg": torch.zeros_like(weight),
        "exp_avg_sq": torch.zeros_like(weight),
    }


def move_moments(
    gradients: list[Tensor], states: Sequence[State], betas: Sequence[float], eps: float, nesterov: bool = False
) -> tuple[list[Tensor], float]:
    """Take the gradients into the moments: fresh tensors, and the factor that makes Adam's updates of them.

    Both bias corrections are in that factor, which spares a pass over the memory:
    m / (sqrt(v) / c + eps) = c * m / (sqrt(v) + c * eps). All states have the same age.
    """
    first, second = betas
    averages, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    torch._foreach_add_([state["step"] for state in states], 1.0)
    step = float(states[0]["step"].item())
    torch._foreach_lerp_(averages, gradients, 1 - first)
    torch._foreach_mul_(squares, second)
    torch._foreach_addcmul_(squares, gradients, gradients, value=1 - second)
    correction = math.sqrt(1 - second**step)
    moved = torch._foreach_sqrt(squares)
    torch._foreach_add_(moved, correction * eps)
    torch._foreach_reciprocal_(moved)  # and a product: a quotient would need memory of its own
    torch._foreach_mul_(moved, torch._foreach_lerp(averages, gradients, 1 - first) if nesterov else averages)
    return list(moved), correction / (1 - first**step)
