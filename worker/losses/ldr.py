"""Label-distributionally robust losses (2112.14869)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import Ldr
from worker.losses.base import LossInputs, target_column
from worker.tensors import at_least_float32

FLOOR = 1e-12
"""Least mean of a row's scores: all may underflow to 0."""


class LdrTerm:
    """The margin loss over the worst distribution of the classes, near the uniform one."""

    def __init__(self, spec: Ldr) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        logits = at_least_float32(inputs.student)
        scores = normalised_scores(F.softplus(logits)) if self.spec.scores == "normalised" else logits
        return robust_margin(scores, target_column(inputs.labels), self.spec.kl_weight, self.spec.margin)


def normalised_scores(scores: Tensor) -> Tensor:
    """Rows (B, C), float32 or float64, over their mean magnitude."""
    return scores / scores.abs().mean(-1, keepdim=True).clamp(min=FLOOR)


def robust_margin(scores: Tensor, labels: Tensor, kl_weight: Tensor | float, margin: float) -> Tensor:
    """l log(1 / C sum_c exp((g_c - g_y + margin [c != y]) / l)) of each row (B,), for `scores` g (B, C), float32 or
    float64, `labels` (B, 1) int64 and l = `kl_weight`, a number or one per row (B, 1)."""
    gaps = scores - scores.gather(-1, labels)
    gaps = gaps + margin * torch.ones_like(gaps).scatter(-1, labels, 0.0)
    found = kl_weight * ((gaps / kl_weight).logsumexp(-1, keepdim=True) - math.log(scores.shape[-1]))
    return found.squeeze(-1)
