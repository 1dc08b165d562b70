"""Exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from worker.students.model import Model


def _same(tensor: Tensor) -> Tensor:
    return tensor


@torch.no_grad()
def move_towards(
    average: nn.Module, module: nn.Module, share: float, local: Callable[[Tensor], Tensor] = _same
) -> None:
    """Move the floating tensors of `average` by a share of the way to those of `module`, which has the same ones; other
    tensors are copied. `local` returns this process's shard of each tensor, of any shape, in its dtype."""
    averages, values = (map(local, each.state_dict().values()) for each in (average, module))
    unique = {moved.data_ptr(): (moved, value) for moved, value in zip(averages, values, strict=True)}
    pairs = list(unique.values())  # weights that two layers share are averaged once
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([a for a, _ in floats], [v for _, v in floats], share)
    for moved, value in pairs:
        if not moved.is_floating_point():
            moved.copy_(value)


class Ema:
    """Average over the steps done, with weights that fall by `decay` per step back in time.

    It is normalised by the number of steps, as Adam's moments are, so the random initial weights do not contribute.
    The statistics of batch norm are averaged like the weights; integer buffers are copied.
    """

    def __init__(self, student: Model, decay: float) -> None:
        self.decay = decay
        self.model = deepcopy(student).requires_grad_(False).eval()

    def update(self, student: Model, step: int, local: Callable[[Tensor], Tensor] = _same) -> None:
        """Add the weights after optimizer step `step`, counted from 1; `local` returns this process's shard of each
        tensor, of any shape, in its dtype."""
        move_towards(self.model, student, (1 - self.decay) / (1 - self.decay**step), local)
