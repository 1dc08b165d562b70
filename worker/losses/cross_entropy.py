"""Cross-entropy with the labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import CrossEntropy
from worker.losses.base import Rows, at_least_float32


class CrossEntropyTerm:
    """-sum_c y_c log p_c, where y is the label mixed with a uniform distribution by `label_smoothing`."""

    def __init__(self, spec: CrossEntropy) -> None:
        self.smoothing = spec.label_smoothing

    def __call__(self, rows: Rows) -> Tensor:
        logits = at_least_float32(rows.student)
        labels = rows.labels.to(logits.dtype) if rows.labels.is_floating_point() else rows.labels
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.smoothing)
