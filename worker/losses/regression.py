"""Distances between the student's predictions and the labels, or a teacher's predictions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses.numbers import DistanceLoss, SmoothL1, Wing
from worker.losses.base import LossInputs, teacher_logits
from worker.tensors import at_least_float32


class DistanceTerm:
    """Mean over a row's values of a cost of the difference; predictions and labels (B, C) of any floating dtype."""

    def __init__(self, spec: DistanceLoss) -> None:
        self.spec = spec

    def __call__(self, inputs: LossInputs) -> Tensor:
        predictions = at_least_float32(inputs.student)
        target = teacher_logits(inputs) if self.spec.needs_teacher else inputs.labels
        return self.cost(predictions - target.to(predictions.dtype)).mean(-1)

    def cost(self, gap: Tensor) -> Tensor:
        """Loss (B, C) of every difference (B, C), floating, between prediction and target."""
        raise NotImplementedError


class MseTerm(DistanceTerm):
    """d^2."""

    def cost(self, gap: Tensor) -> Tensor:
        """See `DistanceTerm`."""
        return gap.square()


class SmoothL1Term(DistanceTerm):
    """d^2 / (2 beta) below beta, d - beta / 2 above (1504.08083)."""

    spec: SmoothL1

    def cost(self, gap: Tensor) -> Tensor:
        """See `DistanceTerm`."""
        return F.smooth_l1_loss(gap, torch.zeros_like(gap), reduction="none", beta=self.spec.beta)


class WingTerm(DistanceTerm):
    """w log(1 + d / epsilon) below w; above it d plus a constant, so that both are equal at w (1711.06753)."""

    spec: Wing

    def cost(self, gap: Tensor) -> Tensor:
        """See `DistanceTerm`."""
        width, distance = self.spec.w, gap.abs()
        offset = width * (1.0 - math.log1p(width / self.spec.epsilon))
        return torch.where(distance < width, width * (distance / self.spec.epsilon).log1p(), distance - offset)
