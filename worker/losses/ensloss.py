"""EnsLoss (2409.00908): gradients of random calibrated losses of the margin."""

from __future__ import annotations

import torch
from torch import Tensor

from app.recipe.losses import EnsLoss
from worker.data.randomness import generator
from worker.losses.base import LossInputs, target_column
from worker.losses.builder import LossBuilder
from worker.tensors import at_least_float32

OFFSET = 1e-6
"""Subtracted from every derivative, so that none is 0."""


class EnsLossTerm:
    """Margin times a drawn derivative. What a step draws depends on the seed, the term and the epoch, with fraction,
    alone, so that a resumed run draws the same."""

    def __init__(self, spec: EnsLoss, builder: LossBuilder) -> None:
        self.spec, self._seed, self._purpose = spec, builder.seed, f"{spec.kind}:{builder.param}"

    def __call__(self, inputs: LossInputs) -> Tensor:
        logits, labels = at_least_float32(inputs.student), target_column(inputs.labels).squeeze(-1)
        margins = (logits[:, 1] - logits[:, 0]) * (2 * labels - 1)
        random = generator(self._seed, self._purpose, repr(inputs.epoch))
        draws = torch.randn(len(margins), generator=random, dtype=torch.float64).to(logits.device)
        return margins * drawn_derivatives(margins.detach(), draws, self._exponent(inputs.epoch), inputs.valid)

    def _exponent(self, epoch: float) -> float:
        """Parameter of the Box-Cox transform in this epoch."""
        if (turn := int(epoch // self.spec.period)) == 0:
            return 0.0
        return 2.0 * float(torch.rand((), generator=generator(self._seed, self._purpose, "exponent", turn))) - 1.0


def inverse_box_cox(draws: Tensor, exponent: float) -> Tensor:
    """(1 + l e)^(1 / l) of floating `draws` e of any shape for l = `exponent`, or exp(e) for 0; infinite where the
    power of 0 is."""
    if exponent == 0.0:
        return draws.exp()
    return (1.0 + exponent * draws).clamp(min=0.0) ** (1.0 / exponent)


def drawn_derivatives(margins: Tensor, draws: Tensor, exponent: float, valid: Tensor | None = None) -> Tensor:
    """Derivatives (B,), below 0, of a loss at floating `margins` (B,), from normal `draws` (B,) float64: the steepest
    at the smallest margin of the rows that are `valid` (B,) bool, and divided by margins above 1."""
    steep = (-inverse_box_cox(draws, exponent)).clamp(min=-1.0)
    if valid is not None:
        steep, margins = steep.where(valid, torch.inf), margins.where(valid, torch.inf)
    order = margins.argsort(stable=True)
    derivatives = torch.empty_like(steep).scatter(0, order, steep.sort().values).to(margins.dtype)
    derivatives = torch.where(margins > 1.0, derivatives / margins, derivatives) - OFFSET
    return derivatives if valid is None else derivatives.where(valid, 0.0)
