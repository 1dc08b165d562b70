"""Decoupled KD (2203.08679): the target class against the rest, and the rest among themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from app.recipe.losses import Dkd
from worker.losses.base import LossInputs, target_column
from worker.losses.softened import FLOOR, kl, log_probs, log_probs_beside, prepare


class DkdTerm:
    """T^2 (alpha TCKD + beta NCKD), both in log space with the target's column really taken out.

    The authors' code subtracts 1000 from the target's logit instead, and takes logs of summed probabilities: the same
    up to where those underflow. With two classes, and where both sides offer no other class, NCKD is 0. Labels
    given as probabilities count by their arg-max.
    """

    def __init__(self, spec: Dkd) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        target, others = self.parts(inputs)
        return self.spec.temperature**2 * (self.spec.alpha * target + self.spec.beta * others)

    def parts(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """TCKD and NCKD of each row, (B,) each, without weights."""
        column = target_column(inputs.labels)
        student, teacher = (logits / self.spec.temperature for logits in prepare(inputs, self.spec.standardize))
        log_q, log_p, _ = log_probs(student, teacher)
        rest_q, rest_p, _ = log_probs_beside(column, student, teacher)
        return kl(_against_rest(column, log_p), _against_rest(column, log_q)), kl(rest_p, rest_q)


def _against_rest(column: Tensor, logs: Tensor) -> Tensor:
    """Log-probabilities (B, 2) of the target and of all other classes together."""
    rest = logs.scatter(-1, column, FLOOR).logsumexp(-1, keepdim=True)
    return torch.cat([logs.gather(-1, column), rest], dim=-1)
