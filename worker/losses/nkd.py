"""Normalised KD (2303.13005): the target's own term, and cross-entropy over the renormalised other classes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import Nkd
from worker.losses.base import LossInputs, target_column
from worker.losses.softened import log_probs_beside, prepare


class NkdTerm:
    """-p_t log p_s of the target class, at temperature 1, plus `gamma` T^2 times the cross-entropy of the non-targets.

    The second part is a cross-entropy, not a divergence, so it is not 0 where both sides agree; with two classes, and
    where both sides offer no other class, it is exactly 0. Labels given as probabilities count by their arg-max, as in
    the authors' code.
    """

    def __init__(self, spec: Nkd) -> None:
        self.gamma, self.temperature = spec.gamma, spec.temperature

    def __call__(self, inputs: LossInputs) -> Tensor:
        target, others = self.parts(inputs)
        return target + self.gamma * self.temperature**2 * others

    def parts(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """Target part and bare non-target part of each row, (B,) each."""
        student, teacher = prepare(inputs, standardized=False)
        column = target_column(inputs.labels)
        p_target, log_q_target = _of(column, teacher).exp(), _of(column, student)
        target = -p_target * log_q_target.where(p_target > 0.0, 0.0)
        others = log_probs_beside(column, *(logits / self.temperature for logits in (student, teacher)))
        return target, -(others.teacher.exp() * others.student).sum(-1)


def _of(column: Tensor, logits: Tensor) -> Tensor:
    return F.log_softmax(logits, dim=-1).gather(-1, column).squeeze(-1)
