"""The Z-loss (1604.08859), of logits that are standardised over the classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import ZLoss
from worker.losses.base import LossInputs, expected_over_labels
from worker.tensors import at_least_float32

EPS = 1e-12
"""Added to the standard deviation, as in the authors' code."""


class ZLossTerm:
    """Softplus of a (b - z_y), over a. A row of equal logits has the value of z = 0, and no gradient."""

    def __init__(self, spec: ZLoss) -> None:
        self.a, self.b = spec.a, spec.b

    def __call__(self, inputs: LossInputs) -> Tensor:
        z = standardized_rows(at_least_float32(inputs.student))
        return expected_over_labels(F.softplus(self.a * (self.b - z)) / self.a, inputs.labels)


def standardized_rows(logits: Tensor) -> Tensor:
    """Rows (B, C), float32 or float64, less their mean, over their standard deviation; a constant row is 0, without a
    gradient. A large mean costs no digits: deviations are squared, and their own mean, from rounding, is 0."""
    centred = logits - logits.mean(-1, keepdim=True)
    centred = centred - centred.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    constant = variance == 0.0
    deviation = torch.where(constant, 1.0, variance).sqrt()
    return torch.where(constant, 0.0, centred / (deviation + EPS))
