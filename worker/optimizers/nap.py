"""Normalize-and-Project (2407.01800): weights are rescaled to their initial norms after the steps of any optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from worker.optimizers.base import MASTER

NORM = "nap_norm"
"""Key in the state of a weight: its norm before the first step (scalar)."""
STEPS = "nap_steps"
"""Key in the optimizer's groups: number of steps."""


class NormProjection:
    """Hooks on an optimizer; its data is in the optimizer's state and groups, and is saved with them.

    `weights` are rescaled to the Frobenius norm before their first step. The vectors of each of `pairs`, scale and
    offset of one normalisation layer of width d, are rescaled together to the norm sqrt(d). Tensors of norm 0, and
    those without a gradient, are not changed, and neither are the moments of the optimizer.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        weights: Sequence[nn.Parameter],
        pairs: Sequence[Sequence[nn.Parameter]],
        every_steps: int = 1,
    ) -> None:
        self.weights, self.pairs, self.every_steps = weights, pairs, every_steps
        self._first: dict[nn.Parameter, Tensor] = {}
        for group in optimizer.param_groups:
            group[STEPS] = 0
        optimizer.register_step_pre_hook(self._measure_norms)
        optimizer.register_step_post_hook(self._project)

    @torch.no_grad()
    def _measure_norms(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Measure initial norms. Optimizers create their state in the first step if there is none, so the norms are
        added to it afterwards."""
        for weight in self.weights:
            if weight.grad is not None and NORM not in optimizer.state.get(weight, {}):
                self._first[weight] = _norm(weight.detach())

    @torch.no_grad()
    def _project(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        while self._first:
            weight, norm = self._first.popitem()
            optimizer.state[weight][NORM] = norm
        for group in optimizer.param_groups:
            group[STEPS] += 1
        if optimizer.param_groups[0][STEPS] % self.every_steps == 0:
            for weight in self.weights:
                if weight.grad is not None:
                    _rescale(optimizer, [weight], optimizer.state[weight][NORM])
            for pair in self.pairs:
                if any(vector.grad is not None for vector in pair):
                    _rescale(optimizer, pair, torch.tensor(pair[0].numel(), dtype=torch.float64).sqrt())


def _rescale(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], norm: Tensor) -> None:
    """Rescale the parameters together to the norm, in place; if they have float32 weights, through those."""
    exact = [optimizer.state.get(parameter, {}).get(MASTER, parameter.detach()) for parameter in parameters]
    found = vector_norm(torch.stack([_norm(tensor) for tensor in exact]))
    factor = torch.where(found > 0, norm.to(found) / found, 1.0)
    for parameter, tensor in zip(parameters, exact, strict=True):
        tensor.mul_(factor)
        if tensor.dtype != parameter.dtype:
            parameter.copy_(tensor)


def _norm(tensor: Tensor) -> Tensor:
    """Norm of the whole tensor, also if it is sharded."""
    norm = vector_norm(tensor.to(_exact(tensor)))
    return norm if type(norm) is Tensor else norm.full_tensor()


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
