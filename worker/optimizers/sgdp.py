"""SGDP (2006.08217, algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from worker.optimizers.base import PerParameter
from worker.optimizers.projection import project


class SgdP(PerParameter):
    """SGD with momentum, whose update loses its radial part on scale-invariant weights.

    The decay is decoupled and divided by (1 - momentum). The authors' code (clovaai/AdamP) also takes the radial part
    out of the stored momentum unless `nesterov` is set; `project_buffer=False` keeps it in, as the paper writes it.
    State per parameter: `momentum`, which starts at zero.
    """

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

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        buffer = self._buffer_of(weight)
        buffer.mul_(group["momentum"]).add_(gradient, alpha=1 - group["dampening"])
        raw = gradient + group["momentum"] * buffer if group["nesterov"] else buffer
        update, ratio = project(weight, gradient, raw, group["delta"], group["wd_ratio"], group["eps"])
        if group["project_buffer"] and not group["nesterov"]:
            buffer.copy_(update)
        if group["weight_decay"] > 0:
            weight.mul_(1 - group["lr"] * group["weight_decay"] * ratio / (1 - group["momentum"]))
        weight.add_(update, alpha=-group["lr"])

    def _buffer_of(self, weight: Tensor) -> Tensor:
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        return state["momentum"]
