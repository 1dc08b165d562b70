"""Optimizers that normalise the gradients of hidden layers' matrices instead of averaging them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from worker.optimizers.adam import adam_steps, fresh_moments
from worker.optimizers.base import Foreach, State, by_shape, stacked


class NormalizedOptimizer(Foreach):
    """Normalised gradients, without state, for `matrices`; Adam for `others`.

    Two parameter groups, in this order. Both have the same settings, so that setting the rate of all groups does not
    change the ratio of the two.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], others: Iterable[nn.Parameter], **settings: Any) -> None:
        groups = [{"params": list(matrices), "rule": "normalized"}, {"params": list(others), "rule": "adam"}]
        super().__init__(groups, settings)

    @abstractmethod
    def _normalize(self, gradients: Tensor, group: dict[str, Any]) -> Tensor:
        """The steps for k matrices, from their gradients, both (k, rows, columns), float32 or float64."""

    def _fresh_state(self, weight: Tensor, group: dict[str, Any]) -> State:
        return fresh_moments(weight) if group["rule"] == "adam" else {}

    def _update(
        self, weights: list[Tensor], gradients: list[Tensor], states: list[State], group: dict[str, Any]
    ) -> None:
        if group["rule"] == "adam":
            rate, steps = group["lr"], adam_steps(gradients, states, group)
        else:
            rate = group["lr"] * group["matrix_ratio"]
            steps = self._directions(gradients, group)
            torch._foreach_mul_(steps, -rate)
        if group["weight_decay"] > 0:
            torch._foreach_mul_(weights, 1.0 - rate * group["weight_decay"])
        torch._foreach_add_(weights, steps)

    def _directions(self, gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        found = list(gradients)
        for members in by_shape(gradients):
            gradient = stacked(gradients, members)
            steps = self._normalize(gradient.flatten(2), group).reshape(gradient.shape)
            for index, step in zip(members, steps, strict=True):
                found[index] = step
        return found
