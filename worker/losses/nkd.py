"""Normalised KD (2303.13005): the target's own term, and cross-entropy over the renormalised other classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import Nkd
from worker.losses.base import Rows, at_least_float32, teacher_logits


class NkdTerm:
    """-p_t log p_s of the target class, at temperature 1, plus `gamma` T^2 times the cross-entropy of the non-targets.

    The second part is a cross-entropy, not a divergence, so it is not 0 where both sides agree; with two classes it is
    exactly 0. Labels given as probabilities count by their arg-max, as in the authors' code.
    """

    def __init__(self, spec: Nkd) -> None:
        self.gamma, self.temperature = spec.gamma, spec.temperature

    def __call__(self, rows: Rows) -> Tensor:
        target, others = self.parts(rows)
        return target + self.gamma * self.temperature**2 * others

    def parts(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Target part and bare non-target part of each row, (B,) each."""
        student, teacher = at_least_float32(rows.student), teacher_logits(rows)
        index = rows.labels.argmax(-1) if rows.labels.ndim == 2 else rows.labels
        column = index.unsqueeze(-1)
        target = -_of(column, teacher).exp() * _of(column, student)
        log_q = _without(column, teacher / self.temperature)
        log_p = _without(column, student / self.temperature)
        return target, -(log_q.exp() * log_p).sum(-1)


def _of(column: Tensor, logits: Tensor) -> Tensor:
    return F.log_softmax(logits, dim=-1).gather(-1, column).squeeze(-1)


def _without(column: Tensor, logits: Tensor) -> Tensor:
    """Log-softmax over the classes other than `column`, which is -inf in the sum and 0 in the result."""
    others = torch.ones_like(logits, dtype=torch.bool).scatter_(-1, column, False)
    return F.log_softmax(logits.masked_fill(~others, -torch.inf), dim=-1).masked_fill(~others, 0.0)
