"""AdamP (2006.08217, algorithm 2)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from worker.optimizers.base import PerParameter
from worker.optimizers.projection import project


class AdamP(PerParameter):
    """Adam with decoupled weight decay, whose update loses its radial part on scale-invariant weights.

    Defaults and order of operations are those of the authors' code (clovaai/AdamP): the projection sees the raw
    gradient and the undecayed weights; the decay comes next, the step last. State per parameter: `step` (float32
    scalar on the CPU), `exp_avg`, `exp_avg_sq`.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "delta": delta,
            "wd_ratio": wd_ratio,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self._state_of(weight)
        state["step"] += 1
        step = cast(float, state["step"].item())
        beta1, beta2 = group["betas"]
        average = state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (square.sqrt() / math.sqrt(1 - beta2**step)).add_(group["eps"])
        momentum = beta1 * average + (1 - beta1) * gradient if group["nesterov"] else average
        update, ratio = project(
            weight, gradient, momentum / denominator, group["delta"], group["wd_ratio"], group["eps"]
        )
        if group["weight_decay"] > 0:
            weight.mul_(1 - group["lr"] * group["weight_decay"] * ratio)
        weight.add_(update, alpha=-group["lr"] / (1 - beta1**step))

    def _state_of(self, weight: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        return state
