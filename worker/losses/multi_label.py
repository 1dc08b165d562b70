"""Losses of labels that are there or not, each by the sigmoid of its own logit.

Logits of both sides and labels are (B, C); a label is a probability, 0 and 1 among them. Everything stays in log space.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import BinaryCrossEntropy, BinaryKd
from worker.losses.base import LossInputs, teacher_logits
from worker.tensors import at_least_float32


class BinaryCrossEntropyTerm:
    """Mean over the classes of -(pos_weight t log q + (1 - t) log (1 - q)), t the smoothed label."""

    def __init__(self, spec: BinaryCrossEntropy) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        logits, smoothing = at_least_float32(inputs.student), self.spec.label_smoothing
        target = inputs.labels.to(logits.dtype) * (1.0 - smoothing) + smoothing / 2
        there, absent = F.logsigmoid(logits), F.logsigmoid(-logits)
        return -(self.spec.pos_weight * target * there + (1.0 - target) * absent).mean(-1)


class BinaryKdTerm:
    """Mean over the classes of T^2 KL(p || q) between the two Bernoulli distributions of a label (arXiv 2308.06453)."""

    def __init__(self, spec: BinaryKd) -> None:
        self.temperature = spec.temperature

    def __call__(self, inputs: LossInputs) -> Tensor:
        teacher, student = teacher_logits(inputs), at_least_float32(inputs.student)
        return self.temperature**2 * binary_kl(teacher / self.temperature, student / self.temperature).mean(-1)


def binary_kl(logits: Tensor, others: Tensor) -> Tensor:
    """KL(p || q) of each label, in nats and the shape of both, of p = sigmoid(`logits`) from q = sigmoid(`others`)."""
    there = logits.sigmoid() * (F.logsigmoid(logits) - F.logsigmoid(others))
    return there + (-logits).sigmoid() * (F.logsigmoid(-logits) - F.logsigmoid(-others))
