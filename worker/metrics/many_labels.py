"""Metrics of predictions of many labels, without a matrix of all samples and labels.

Logits (B, C) of a batch are reduced to a summary (B, K + P + 1) float32: the K largest logits, descending; those of the
P positives, 0 where there is none; and the mean binary cross-entropy over the labels, in nats. No entry differs by
more than the largest difference of the logits. Positives (B, P) int32 are numbers of labels, `IGNORED` behind the last.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.tensors import IGNORED

LARGEST = 5
"""Largest logits that are kept of a sample."""


def summarise(logits: Tensor, positives: Tensor) -> Tensor:
    """The summary (B, LARGEST + P + 1) float32 of logits (B, C), with C at least `LARGEST`."""
    logits, there = logits.float(), positives != IGNORED
    taken = logits.gather(1, positives.long().clamp(min=0)).where(there, 0.0)
    rest = F.softplus(logits).sum(1, dtype=torch.float64) - taken.sum(1, dtype=torch.float64)
    largest = logits.topk(LARGEST, dim=1).values
    return torch.cat([largest, taken, (rest / logits.shape[1]).float().unsqueeze(1)], 1)


def precision_at(summary: Tensor, positives: Tensor, k: int) -> Tensor:
    """Mean over the samples, a float64 scalar, of the share of positives among the `k` largest logits, k at most
    `LARGEST`; a positive with the same logit as the last of these is among them."""
    taken = summary[:, LARGEST:-1]
    hits = ((taken >= summary[:, k - 1 : k]) & (positives != IGNORED)).sum(1).clamp(max=k)
    return (hits.double() / k).mean()


def negative_log_likelihood(summary: Tensor) -> Tensor:
    """Mean binary cross-entropy over samples and labels, a float64 scalar in nats."""
    return summary[:, -1].double().mean()
