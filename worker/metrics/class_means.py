"""Means of classes, and what is left within them, computed a batch at a time.

n features of a batch, C classes, D numbers of a feature.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Added(NamedTuple):
    """What a batch adds to sums of squares within the classes: `within` of its own, and `weight` times `apart` squared
    for each class."""

    within: Tensor
    """(n, D): the features without their class's mean in the batch."""
    weight: Tensor
    """(C, 1)."""
    apart: Tensor
    """(C, D): the classes' means in the batch without those before it."""


class ClassMeans:
    """Counts (C,) and means (C, D) of the features of each class, float64, merged by the rule of Chan et al."""

    def __init__(self, classes: int, width: int) -> None:
        self.counts = torch.zeros(classes, dtype=torch.float64)
        self.means = torch.zeros(classes, width, dtype=torch.float64)

    def merge(self, features: Tensor, labels: Tensor) -> Added:
        """Add floating `features` (n, D) with `labels` (n,) int64 to counts and means."""
        rows = features.double()
        counts = torch.bincount(labels, minlength=len(self.counts)).double()
        means = torch.zeros_like(self.means).index_add_(0, labels, rows) / counts.clamp(min=1).unsqueeze(1)
        total = self.counts + counts
        share = (counts / total.clamp(min=1)).unsqueeze(1)
        added = Added(rows - means[labels], self.counts.unsqueeze(1) * share, means - self.means)
        self.means = self.means + share * added.apart
        self.counts = total
        return added
