"""Normalised gradient descent for classification (2412.08424): steps that do not shrink with the loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from worker.optimizers.base import Foreach, State


class NormalizedGdOptimizer(Foreach):
    """Divides the gradient by the mean probability of the wrong classes, which is computed from the outputs' gradients.

    The gradient of the mean cross-entropy at the logits of sample i is (p_i - onehot_i) / n: its positive and its
    negative entries each sum to the probability of the wrong classes, s_i / n. Their sum over the samples is the
    divisor mean(s), for any micro-batches and any weight of the loss. With a single logit the two sums are
    |p_i - y_i| / n and 0.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.wrong: Tensor | None = None
        """Sum over the outputs since the last step; a scalar on their device."""

    def listen(self, outputs: Tensor) -> None:
        """Add the gradient of the model's outputs (…, C), floating, when it is computed; for every part of a batch."""
        outputs.register_hook(self._add)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's; also clears the sum over the outputs' gradients."""
        self.wrong = None
        super().zero_grad(set_to_none)

    def _add(self, gradient: Tensor) -> None:
        exact = gradient.to(torch.promote_types(gradient.dtype, torch.float32)).flatten(0, -2)
        sums = torch.maximum(exact.clamp(min=0).sum(-1), -exact.clamp(max=0).sum(-1))  # one of the two may round to 0
        self.wrong = sums.sum() if self.wrong is None else self.wrong + sums.sum()

    def _fresh_state(self, weight: Tensor, group: dict[str, Any]) -> State:
        return {}

    def _update(
        self, weights: list[Tensor], gradients: list[Tensor], states: list[State], group: dict[str, Any]
    ) -> None:
        if self.wrong is None:
            raise RuntimeError("the outputs had no gradient, or `listen` was not called with them")
        wrong = self.wrong.to(weights[0].dtype)
        factor = torch.where(wrong > 0, -group["lr"] / wrong, 0.0)
        torch._foreach_add_(weights, torch._foreach_mul(gradients, factor))
