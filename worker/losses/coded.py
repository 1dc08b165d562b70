"""Losses of a classifier whose last layer is a codebook (VQ-Logits, arXiv 2505.10202), on logits of its codes.

The equations are those of `worker.losses.codebook`: with c_k classes of code k, both losses are those of the logits
l_k / T + log c_k over the codes, plus a part without gradient. B rows, C classes, K codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from app.recipe.losses import CrossEntropy, Kd
from worker.losses.base import LossInputs, teacher_logits
from worker.losses.codebook import code_mass, log_counts
from worker.tensors import at_least_float32


class CodedCrossEntropyTerm:
    """Cross-entropy over the classes, from `LossInputs.student` (B, K)."""

    def __init__(self, spec: CrossEntropy, codes: Tensor) -> None:
        """`codes` (C,) int64 are those of the classes."""
        self._codes = codes

    def __call__(self, inputs: LossInputs) -> Tensor:
        logits, labels = at_least_float32(inputs.student), inputs.labels
        log_mass = (logits + log_counts(self._codes, logits.shape[1]).to(logits.dtype)).logsumexp(1)
        if labels.ndim == 1:
            return log_mass - logits.gather(1, self._codes[labels].unsqueeze(1)).squeeze(1)
        shares = labels.to(logits.dtype)
        by_code = torch.zeros_like(logits).index_add_(1, self._codes, shares)
        return log_mass * shares.sum(1) - (by_code * logits).sum(1)


class CodedKdTerm:
    """T^2 KL(p || q) over the classes, from `LossInputs.student` (B, K) and the teacher's logits (B, C)."""

    def __init__(self, spec: Kd, codes: Tensor) -> None:
        """`codes` (C,) int64 are those of the classes."""
        self._temperature, self._codes = spec.temperature, codes

    def __call__(self, inputs: LossInputs) -> Tensor:
        logits = at_least_float32(inputs.student)
        counts = log_counts(self._codes, logits.shape[1])
        log_p = (teacher_logits(inputs) / self._temperature).log_softmax(1)
        mass = code_mass(log_p, self._codes, logits.shape[1])
        log_q = (logits / self._temperature + counts.to(logits.dtype)).log_softmax(1)
        gaps = mass.logs.exp() * (mass.logs - log_q).where(mass.logs > -torch.inf, 0.0)
        return self._temperature**2 * (gaps.sum(1) + mass.least_kl(counts))
