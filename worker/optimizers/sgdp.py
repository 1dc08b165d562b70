"""SGDP (2006.08217, algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from worker.optimizers.base import State
from worker.optimizers.projected import Projected
from worker.optimizers.projection import project
from worker.optimizers.rule import UpdateRule


class SgdPOptimizer(Projected):
    """SGD with momentum, whose update has no radial part on scale-invariant weights.

    The decay is decoupled and divided by (1 - momentum). The authors' code (clovaai/AdamP) also removes the radial part
    from the stored momentum unless `nesterov` is set; `project_buffer=False` does not, as in the paper.
    State per parameter: `momentum`, which starts at zero.
    """

    AVERAGE = "momentum"

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
        project_buffer: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "eps": eps,
            "weight_decay": weight_decay,
            "delta": delta,
            "wd_ratio": wd_ratio,
            "nesterov": nesterov,
            "project_buffer": project_buffer,
        }
        super().__init__(params, defaults)

    def _rule(self, group: dict[str, Any]) -> UpdateRule:
        return UpdateRule(
            rate=group["lr"],
            decay=group["lr"] * group["weight_decay"] / (1 - group["momentum"]),
            keep=group["momentum"],
            take=1 - group["dampening"],
            again=1.0 if group["nesterov"] else None,
            betas=None,
            project_buffer=group["project_buffer"] and not group["nesterov"],
            delta=group["delta"],
            wd_ratio=group["wd_ratio"],
            eps=group["eps"],
        )

    def _fresh_state(self, weight: Tensor, group: dict[str, Any]) -> State:
        return {"momentum": torch.zeros_like(weight)}

    def _update(
        self, weights: list[Tensor], gradients: list[Tensor], states: list[State], group: dict[str, Any]
    ) -> None:
        buffers = [state["momentum"] for state in states]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients, alpha=1 - group["dampening"])
        updates = _steps(buffers, gradients, group)
        ratios = project(weights, gradients, updates, group["delta"], group["wd_ratio"], group["eps"])
        if group["project_buffer"] and not group["nesterov"]:
            torch._foreach_copy_(buffers, updates)
        rate = group["lr"] * group["weight_decay"] / (1 - group["momentum"])
        if rate > 0:
            torch._foreach_mul_(weights, [1.0 - rate * ratio for ratio in ratios])
        torch._foreach_add_(weights, updates, alpha=-group["lr"])


def _steps(buffers: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """Updates as new tensors, because the projection changes them."""
    if group["nesterov"]:
        return list(torch._foreach_add(gradients, buffers, alpha=group["momentum"]))
    return [buffer.clone() for buffer in buffers]
