"""Comp-sum losses (2304.07288): functions of the label's probability, from cross-entropy to the mean absolute error."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import CompSum
from worker.losses.base import LossInputs, expected_over_labels
from worker.tensors import at_least_float32

LARGEST_EXPONENT = 80.0
"""Its exponential, and a sum over any batch, is finite in float32."""


class CompSumTerm:
    """(q_y^(tau - 1) - 1) / (1 - tau), in log space."""

    def __init__(self, spec: CompSum) -> None:
        self.tau, self.rho = spec.tau, spec.rho

    def __call__(self, inputs: LossInputs) -> Tensor:
        logs = F.log_softmax(at_least_float32(inputs.student) / self.rho, dim=-1)
        return expected_over_labels(comp_sum(logs, self.tau), inputs.labels)


def comp_sum(logs: Tensor, tau: float) -> Tensor:
    """The loss for each log-probability of a label (any shape, float32 or float64)."""
    if tau == 1.0:
        return -logs
    return torch.expm1(((tau - 1.0) * logs).clamp(max=LARGEST_EXPONENT)) / (1.0 - tau)
