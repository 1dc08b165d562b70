"""Logits of student and teacher prepared for the row losses: in at least float32, standardised, at a temperature."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from app.recipe.losses import Softened
from worker.kernels.log_probs import LogProbs, log_probs
from worker.losses.base import LossInputs, teacher_logits
from worker.tensors import at_least_float32, surely_none


def soften(inputs: LossInputs, spec: Softened) -> LogProbs:
    """Log-probabilities (B, C) of student and teacher at the temperature, in at least float32; of standardised logits
    if `spec` sets it."""
    return log_probs(*(logits / spec.temperature for logits in prepare(inputs, spec.standardize)))


def prepare(inputs: LossInputs, standardized: bool) -> tuple[Tensor, Tensor]:
    """Logits (B, C) of student and teacher in at least float32, standardised if `standardized`."""
    student, teacher = at_least_float32(inputs.student), teacher_logits(inputs)
    return (standardize(student), standardize(teacher)) if standardized else (student, teacher)


def standardize(logits: Tensor) -> Tensor:
    """Logits (B, C), float32 or float64, with mean 0 and unbiased deviation 1 in every row, over its unmasked columns;
    a constant row becomes 0.

    Source: arXiv 2403.01427. As in the authors' code the deviation is the unbiased one with 1e-7 added.
    """
    masked = logits.isneginf()
    if surely_none(masked):
        centered = logits - logits.mean(-1, keepdim=True)
        return centered / (_norm(centered) / math.sqrt(max(logits.shape[-1] - 1, 1)) + 1e-7)
    count = (~masked).sum(-1, keepdim=True)
    mean = logits.masked_fill(masked, 0.0).sum(-1, keepdim=True) / count
    centered = (logits - mean).masked_fill(masked, 0.0)
    deviation = _norm(centered) / (count - 1).clamp(min=1).to(logits.dtype).sqrt()
    return (centered / (deviation + 1e-7)).masked_fill(masked, -torch.inf)


def _norm(values: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    return norm
