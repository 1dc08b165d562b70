"""FerKD (2312.17473): soft labels for crops of high teacher confidence, hard labels for lower confidence, none for the
lowest.

The choice of rows depends on the batch: losses are scaled so that their mean over the valid rows is the mean over the
kept ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from app.recipe.losses.labels import Ferkd
from worker.kernels.log_probs import log_probs
from worker.losses.base import LossInputs
from worker.losses.soft_labels import recover
from worker.losses.softened import prepare

LOST, HARD, SURE, EASY = range(4)
"""Kinds of crops, in the order of the teacher's confidence."""


class Calibrated(NamedTuple):
    """Calibrated labels of a batch."""

    labels: Tensor
    """(B, C) floating probabilities; the teacher's for rows that are not kept."""
    kinds: Tensor
    """(B,) int64: LOST, HARD, SURE or EASY."""
    kept: Tensor
    """(B,) bool: rows that the loss uses."""


class FerkdTerm:
    """Cross-entropy with calibrated labels over the kept rows, without columns that either side masks."""

    def __init__(self, spec: Ferkd) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        student, teacher = prepare(inputs, standardized=False)
        log_q, log_p, masked = log_probs(student, teacher)
        calibrated = self.calibrate(log_p, masked, inputs)
        losses = -(calibrated.labels * log_q.masked_fill(masked, 0.0)).sum(-1)
        counted = len(losses) if inputs.valid is None else inputs.valid.sum()
        return losses.where(calibrated.kept, 0.0) * counted / calibrated.kept.sum().clamp(min=1)

    def calibrate(self, log_p: Tensor, masked: Tensor, inputs: LossInputs) -> Calibrated:
        """Labels from the teacher's log-probabilities (B, C), float32 or float64, without the `masked` ones (B, C)
        bool."""
        p, true, valid = log_p.exp(), self._true_labels(inputs, log_p), _valid(inputs)
        confidence = p.amax(-1) if self.spec.confidence == "top1" else (p * true).sum(-1)
        kinds = self._kinds(confidence, valid)
        hard = kinds == HARD
        kept = valid & (hard | (kinds == SURE))
        labels = torch.where(hard.unsqueeze(-1), self._smoothed(true, masked), self._soft(p, masked))
        return Calibrated(labels, kinds, torch.where(kept.any(), kept, valid))

    def _kinds(self, confidence: Tensor, valid: Tensor) -> Tensor:
        limits = confidence.new_tensor([self.spec.low, self.spec.middle, self.spec.high])
        if self.spec.thresholds == "quantile":
            limits = confidence.where(valid, torch.nan).nanquantile(limits)
        low, middle, high = limits
        kinds: Tensor = (confidence >= low).long() + (confidence >= middle) + (confidence > high)
        return kinds

    def _true_labels(self, inputs: LossInputs, like: Tensor) -> Tensor:
        """(B, C) probabilities."""
        if inputs.labels.is_floating_point():
            return inputs.labels.to(like.dtype)
        return torch.zeros_like(like).scatter(-1, inputs.labels.unsqueeze(-1), 1.0)

    def _smoothed(self, true: Tensor, masked: Tensor) -> Tensor:
        """Labels (B, C) smoothed: `smoothing` of every class's share is spread evenly over the other classes."""
        others = ((~masked).sum(-1, keepdim=True) - 1).clamp(min=1)
        smoothing = self.spec.smoothing
        return (1.0 - smoothing) * true + ((1.0 - true) * smoothing / others).masked_fill(masked, 0.0)

    def _soft(self, p: Tensor, masked: Tensor) -> Tensor:
        if self.spec.top_k is None:
            return p
        values, columns = p.topk(min(self.spec.top_k, p.shape[-1]), dim=-1)
        left = p.scatter(-1, columns, 0.0).sum(-1, keepdim=True) if self.spec.rest == "spread" else None
        return recover(columns, values, ~masked, left)


def _valid(inputs: LossInputs) -> Tensor:
    every = torch.ones(len(inputs.student), dtype=torch.bool, device=inputs.student.device)
    return every if inputs.valid is None else inputs.valid
