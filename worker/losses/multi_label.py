"""Multi-label losses: each label is present or absent, with the sigmoid of its logit as probability.

Logits of student and teacher and labels are (B, C); a label is a probability from 0 to 1. All is computed in log space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import BinaryCrossEntropy, BinaryKd
from worker.losses.base import LossInputs, teacher_logits
from worker.tensors import IGNORED, at_least_float32

LABELS_AT_ONCE = 2**14
"""Labels whose losses are computed at a time, where targets are lists."""


class BinaryCrossEntropyTerm:
    """Mean over the classes of -(pos_weight t log q + (1 - t) log (1 - q)), t the smoothed label."""

    def __init__(self, spec: BinaryCrossEntropy) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        logits, smoothing = at_least_float32(inputs.student), self.spec.label_smoothing
        if inputs.labels.dtype == torch.int32:
            return self._of_lists(logits, inputs.labels)
        target = inputs.labels.to(logits.dtype) * (1.0 - smoothing) + smoothing / 2
        present, absent = F.logsigmoid(logits), F.logsigmoid(-logits)
        return -(self.spec.pos_weight * target * present + (1.0 - target) * absent).mean(-1)

    def _of_lists(self, logits: Tensor, positives: Tensor) -> Tensor:
        """The same for numbers (B, P) int32 of the present labels: the loss of all as absent, some labels at a time,
        and for the present ones the difference to it."""
        half, weight = self.spec.label_smoothing / 2, self.spec.pos_weight
        total = logits.new_zeros(len(logits))
        parts: tuple[Tensor, ...] = torch.split(logits, LABELS_AT_ONCE, dim=1)
        for part in parts:
            total = total + (1.0 - half) * F.softplus(part).sum(1)
            if half:
                total = total + weight * half * F.softplus(-part).sum(1)
        there = positives != IGNORED
        present = logits.gather(1, positives.long().clamp(min=0))
        gains = (1.0 - 2.0 * half) * (weight * F.softplus(-present) - F.softplus(present))
        return (total + gains.where(there, 0.0).sum(1)) / logits.shape[1]


class BinaryKdTerm:
    """Mean over the classes of T^2 KL(p || q), p and q the Bernoulli distributions of a label (arXiv 2308.06453)."""

    def __init__(self, spec: BinaryKd) -> None:
        self.temperature = spec.temperature

    def __call__(self, inputs: LossInputs) -> Tensor:
        teacher, student = teacher_logits(inputs), at_least_float32(inputs.student)
        return self.temperature**2 * binary_kl(teacher / self.temperature, student / self.temperature).mean(-1)


def binary_kl(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(p || q) of each label in nats, in the shape of both floating arguments, for p = sigmoid(`teacher_logits`) and
    q = sigmoid(`student_logits`)."""
    present = teacher_logits.sigmoid() * (F.logsigmoid(teacher_logits) - F.logsigmoid(student_logits))
    return present + (-teacher_logits).sigmoid() * (F.logsigmoid(-teacher_logits) - F.logsigmoid(-student_logits))
