"""Accuracy on the batch of a step, for networks that learn beside the student."""

from __future__ import annotations

import torch
from torch import Tensor

ACCURACY = "accuracy"
"""Name of the metric."""


def classes_of(targets: Tensor) -> Tensor:
    """Classes (B,) int64 of targets (B,) int64, or the likeliest ones of probabilities (B, C)."""
    return targets if targets.dtype == torch.int64 else targets.argmax(-1)


def accuracy_share(logits: Tensor, targets: Tensor, count: Tensor) -> Tensor:
    """Share of a micro-batch in the accuracy on a batch of `count` valid rows, a scalar in float32 or wider, from
    logits (B, C) and targets (B,) int64 or (B, C) probabilities; ignored rows are no hits."""
    hits = (logits.argmax(-1) == classes_of(targets)).sum() / count
    return hits.to(torch.promote_types(logits.dtype, torch.float32))
