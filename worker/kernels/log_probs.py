"""Student and teacher distributions in log space, and functions of two of them.

A column that either side masks (a logit of -inf: padding of a vocabulary, a class that is not offered) is left out: it
is removed after the softmax, so that its probability is not divided among the others.

Shapes: B rows, C columns; all floating tensors in float32 or float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.tensors import surely_none

FLOOR = -1e9
"""Log of a probability of 0: finite, so that differences of two such logs are 0 and products are not NaN."""


class LogProbs(NamedTuple):
    """Log-probabilities (B, C) of student and teacher; FLOOR in both if either masks the column."""

    student: Tensor
    teacher: Tensor
    masked: Tensor
    """(B, C) bool."""


def log_probs(student: Tensor, teacher: Tensor) -> LogProbs:
    """Log-softmax of logits (B, C) of student and teacher."""
    masked = student.isneginf() | teacher.isneginf()
    log_q, log_p = (F.log_softmax(side, dim=-1) for side in (student, teacher))
    if not surely_none(masked):
        log_q, log_p = log_q.masked_fill(masked, FLOOR), log_p.masked_fill(masked, FLOOR)
    return LogProbs(log_q, log_p, masked)


def log_probs_beside(column: Tensor, student: Tensor, teacher: Tensor) -> LogProbs:
    """Log-softmax of logits (B, C) over all classes but `column` (B, 1) int64.

    If no other class is left that neither side masks, all is FLOOR, with no gradient, because the softmax has no
    divisor.
    """
    student, teacher = (logits.scatter(-1, column, -torch.inf) for logits in (student, teacher))
    masked = student.isneginf() | teacher.isneginf()
    nothing = masked.all(-1, keepdim=True)
    if not surely_none(nothing):  # the softmax of a fully masked row would be NaN, and its gradient
        student, teacher = student.masked_fill(nothing, 0.0), teacher.masked_fill(nothing, 0.0)
    log_q, log_p = (F.log_softmax(side, dim=-1).masked_fill(masked, FLOOR) for side in (student, teacher))
    return LogProbs(log_q, log_p, masked)


def kl(of: Tensor, against: Tensor) -> Tensor:
    """KL(of || against) of each row (B,), from log-probabilities (B, C)."""
    return F.kl_div(against, of, reduction="none", log_target=True).sum(-1)


def entropy(logs: Tensor) -> Tensor:
    """Entropy in nats of each row (B,), from log-probabilities (B, C)."""
    return -(logs.exp() * logs).sum(-1)


def mixture(share: float, first: Tensor, second: Tensor) -> Tensor:
    """Log (B, C) of `share` first + (1 - share) second, from their logs (B, C); exactly one of them if `share` is 0
    or 1."""
    if share in (0.0, 1.0):
        return first if share else second
    return torch.logaddexp(first + math.log(share), second + math.log1p(-share))
