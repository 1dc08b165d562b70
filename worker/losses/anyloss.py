"""AnyLoss (2405.14745): metrics of a binary confusion matrix, with soft counts."""

from __future__ import annotations

import torch
from torch import Tensor

from app.recipe.losses import AnyLoss
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.tensors import at_least_float32

THRESHOLD = 0.5
LEAST = 1e-12
"""Least denominator, and least square of a root, whose gradient would be infinite at 0."""


class AnyLossTerm:
    """One less the metric, in every row.

    The counts are added up over the processes without a gradient. A row's gradient is that of its own counts times the
    derivative of the metric at the sums, so that the gradients of all rows of all processes are that of the metric.
    """

    def __init__(self, spec: AnyLoss, builder: LossBuilder) -> None:
        self.spec, self._everywhere = spec, builder.everywhere

    def __call__(self, inputs: LossInputs) -> Tensor:
        counts = self.counts(inputs)
        sums = self._everywhere(counts.detach().sum(0)).requires_grad_()
        with torch.enable_grad():
            loss = 1.0 - self.metric(sums)
            (slope,) = torch.autograd.grad(loss, sums)
        lacking = self._lacks_a_class(sums.detach())
        value, own = loss.detach().masked_fill(lacking, 0.0), counts @ slope.masked_fill(lacking, 0.0)
        return value + sums.detach()[-1] * (own - own.detach())

    def counts(self, inputs: LossInputs) -> Tensor:
        """Of each row y h, y, h and 1 (B, 4), or zeros if it is not valid."""
        logits, positive = at_least_float32(inputs.student), self.spec.positive
        labels = inputs.labels[:, positive] if inputs.labels.ndim == 2 else inputs.labels == positive
        probabilities = (logits[:, positive] - logits[:, 1 - positive]).sigmoid()
        found = (self.spec.amplification * (probabilities - THRESHOLD)).sigmoid()
        y = labels.to(logits.dtype)
        counts = torch.stack((y * found, y, found, torch.ones_like(y)), dim=1)
        return counts if inputs.valid is None else counts.where(inputs.valid.unsqueeze(1), 0.0)

    def metric(self, sums: Tensor) -> Tensor:
        """The metric, a scalar, from the sums of `counts` (4,)."""
        right, positives, predicted, rows = sums.unbind()
        negatives, rejected = rows - positives, rows - positives - predicted + right
        smoothing, squared = self.spec.smoothing, self.spec.beta**2
        match self.spec.metric:
            case "accuracy":
                return _ratio(right + rejected, rows)
            case "f-beta":
                return _ratio((1.0 + squared) * right, squared * positives + predicted + smoothing)
            case "balanced-accuracy":
                recalls = right * negatives + rejected * positives
                return _ratio(recalls, 2.0 * positives * negatives + smoothing)
        product = _ratio(right * rejected, positives * negatives + smoothing)
        return product.clamp(min=LEAST).sqrt() if self.spec.metric == "g-mean" else product

    def _lacks_a_class(self, sums: Tensor) -> Tensor:
        """Whether the batch lacks what the metric divides by, a bool scalar."""
        _, positives, _, rows = sums.unbind()
        match self.spec.metric:
            case "accuracy":
                return rows == 0.0
            case "f-beta":
                return positives == 0.0
        return (positives == 0.0) | (positives == rows)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return part / whole.clamp(min=LEAST)
