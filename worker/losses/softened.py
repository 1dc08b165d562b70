"""Softened distributions of both sides, and the divergences between them, all in log space.

A column that either side masks (a logit of -inf: padding of a vocabulary, a class that is not offered) counts for
nothing: it is taken out after the softmax, so that what it weighed is not shared out among the others.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import Softened
from worker.losses.base import LossInputs, teacher_logits
from worker.tensors import at_least_float32

FLOOR = -1e9
"""Log of what counts as no probability: finite, so that differences of two such logs are 0 and products no NaN."""


class LogProbs(NamedTuple):
    """Log-probabilities (B, C) of both sides; FLOOR in both where either side masks the column."""

    student: Tensor
    teacher: Tensor
    masked: Tensor
    """(B, C) bool."""


def log_probs(student: Tensor, teacher: Tensor) -> LogProbs:
    """Of logits (B, C)."""
    masked = student.isneginf() | teacher.isneginf()
    log_q, log_p = (F.log_softmax(side, dim=-1) for side in (student, teacher))
    if not surely_none(masked):
        log_q, log_p = log_q.masked_fill(masked, FLOOR), log_p.masked_fill(masked, FLOOR)
    return LogProbs(log_q, log_p, masked)


def log_probs_beside(column: Tensor, student: Tensor, teacher: Tensor) -> LogProbs:
    """Of logits (B, C) without `column` (B, 1): of the other classes among themselves.

    Where no other class is left that both sides offer, all is FLOOR, with no gradient: there is nothing to divide by.
    """
    student, teacher = (logits.scatter(-1, column, -torch.inf) for logits in (student, teacher))
    masked = student.isneginf() | teacher.isneginf()
    nothing = masked.all(-1, keepdim=True)
    if not surely_none(nothing):  # the softmax of what is masked throughout would be NaN, and its slope
        student, teacher = student.masked_fill(nothing, 0.0), teacher.masked_fill(nothing, 0.0)
    log_q, log_p = (F.log_softmax(side, dim=-1).masked_fill(masked, FLOOR) for side in (student, teacher))
    return LogProbs(log_q, log_p, masked)


def soften(inputs: LossInputs, spec: Softened) -> LogProbs:
    """Both sides of `rows`, standardised if asked for, at the temperature."""
    return log_probs(*(logits / spec.temperature for logits in prepare(inputs, spec.standardize)))


def prepare(inputs: LossInputs, standardized: bool) -> tuple[Tensor, Tensor]:
    """Logits of student and teacher in at least float32, standardised if asked for."""
    student, teacher = at_least_float32(inputs.student), teacher_logits(inputs)
    return (standardize(student), standardize(teacher)) if standardized else (student, teacher)


def standardize(logits: Tensor) -> Tensor:
    """Mean 0 and unbiased deviation 1 in every row, over its unmasked columns; a constant row becomes 0.

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


def surely_none(marked: Tensor) -> bool:
    """Whether nothing is marked (bool), as far as that is known without waiting for a device."""
    return marked.device.type == "cpu" and not bool(marked.any())


def _norm(values: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    return norm


def kl(of: Tensor, against: Tensor) -> Tensor:
    """KL(of || against) of each row (B,), from log-probabilities (B, C)."""
    return F.kl_div(against, of, reduction="none", log_target=True).sum(-1)


def entropy(logs: Tensor) -> Tensor:
    """Of each row (B,), from log-probabilities (B, C)."""
    return -(logs.exp() * logs).sum(-1)


def mixture(share: float, first: Tensor, second: Tensor) -> Tensor:
    """Log of `share` first + (1 - share) second, from their logs; exactly one of them where `share` is 0 or 1."""
    if share in (0.0, 1.0):
        return first if share else second
    return torch.logaddexp(first + math.log(share), second + math.log1p(-share))


class SoftenedTerm:
    """Base of the terms that are a function of the two softened distributions alone."""

    def __init__(self, spec: Softened) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        student, teacher, _ = soften(inputs, self.spec)
        return self.divergence(student, teacher)

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Loss of each row (B,), from log-probabilities (B, C)."""
        raise NotImplementedError
