"""AdamP (2006.08217, algorithm 2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from worker.optimizers.adam import adam_steps, fresh_moments
from worker.optimizers.base import State
from worker.optimizers.projected import Projected
from worker.optimizers.projection import project
from worker.optimizers.rule import UpdateRule


class AdamPOptimizer(Projected):
    """Adam with decoupled weight decay, whose update has no radial part on scale-invariant weights.

    Defaults and order of operations are those of the authors' code (clovaai/AdamP): the projection uses the raw
    gradient and the weights before decay; the decay comes next, the step last. State per parameter: `step` (float32
    scalar), `exp_avg`, `exp_avg_sq`.
    """

    AVERAGE = "exp_avg"

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

    def _rule(self, group: dict[str, Any]) -> UpdateRule:
        first, second = group["betas"]
        return UpdateRule(
            rate=group["lr"],
            decay=group["lr"] * group["weight_decay"],
            keep=first,
            take=1 - first,
            again=1 - first if group["nesterov"] else None,
            betas=(first, second),
            project_buffer=False,
            delta=group["delta"],
            wd_ratio=group["wd_ratio"],
            eps=group["eps"],
        )

    def _fresh_state(self, weight: Tensor, group: dict[str, Any]) -> State:
        return fresh_moments(weight)

    def _update(
        self, weights: list[Tensor], gradients: list[Tensor], states: list[State], group: dict[str, Any]
    ) -> None:
        steps = adam_steps(gradients, states, group)
        ratios = project(weights, gradients, steps, group["delta"], group["wd_ratio"], group["eps"])
        _move(weights, steps, ratios, group["lr"] * group["weight_decay"])


def _move(weights: list[Tensor], steps: list[Tensor], ratios: list[Tensor], rate: float) -> None:
    """Decay each weight in place by `rate` times its ratio (a scalar), and add its step in the same pass."""
    if rate <= 0:
        torch._foreach_add_(weights, steps)
        return
    for weight, step, ratio in zip(weights, steps, ratios, strict=True):
        torch.addcmul(step, weight, 1.0 - rate * ratio, out=weight)
