"""Losses of INP-Former (2503.02424): soft mining, the cosine of whole features with gradients scaled by position; and
coherence of prototypes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import FeatureReconstruction, MinedReconstruction, PrototypeCoherence
from app.recipe.losses.reconstruction import DECODED, ENCODED, PROTOTYPES, TOKENS
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.features.activations import channel_axis, of_student
from worker.losses.features.adapters import Joiner, require_kind

ROUNDING = 16
"""Mean distances up to so many units of rounding are taken as 0: their ratios are noise."""


class InpFormerTerm:
    """Mean over the pairs of the soft mining loss."""

    def __init__(self, spec: MinedReconstruction, builder: LossBuilder) -> None:
        self._mined = SoftMining(spec.gamma, builder)
        joiner = Joiner(builder, spec.name, spec.teacher, spec.adapter)
        self.joints = [joiner.join(pair, f"pairs[{index}]") for index, pair in enumerate(spec.pairs)]
        for index, pair in enumerate(spec.pairs):
            require_kind(builder, builder.student(pair.student), (3, 4), f"pairs[{index}]")

    def __call__(self, inputs: LossInputs) -> Tensor:
        return torch.stack([self._mined(*joint(inputs), inputs) for joint in self.joints]).mean(0)


class FeatureReconstructionTerm:
    """Mean over the groups of layers of the soft mining loss."""

    def __init__(self, spec: FeatureReconstruction, builder: LossBuilder) -> None:
        self._mined = SoftMining(spec.gamma, builder)

    def __call__(self, inputs: LossInputs) -> Tensor:
        decoded, encoded = of_student(inputs, DECODED), of_student(inputs, ENCODED)
        groups = zip(decoded.unbind(1), encoded.unbind(1), strict=True)
        return torch.stack([self._mined(*sides, inputs) for sides in groups]).mean(0)


class PrototypeCoherenceTerm:
    """Mean over the tokens of 1 - cos of each with the nearest prototype."""

    def __init__(self, spec: PrototypeCoherence, builder: LossBuilder) -> None:
        pass

    def __call__(self, inputs: LossInputs) -> Tensor:
        return coherence(of_student(inputs, TOKENS), of_student(inputs, PROTOTYPES))


def coherence(tokens: Tensor, prototypes: Tensor) -> Tensor:
    """1 - cos (B,) of floating tokens (B, S, D) with the nearest of the prototypes (B, M, D), mean over the tokens."""
    cosines = F.normalize(tokens, dim=-1) @ F.normalize(prototypes, dim=-1).mT
    return (1.0 - cosines.max(-1).values).mean(-1)


class SoftMining:
    """1 - cos of each row's flattened features; rows are coupled by their gradients alone."""

    def __init__(self, gamma: float, builder: LossBuilder) -> None:
        self._gamma, self._everywhere = gamma, builder.everywhere

    def __call__(self, student: Tensor, teacher: Tensor, inputs: LossInputs) -> Tensor:
        """1 - cos (B,) of two floating features (B, S, D) or (B, C, H, W) of one shape."""
        tokens = inputs.features.student_tokens if student.ndim == 3 else None
        if tokens is not None and tokens.shape == student.shape[:2]:
            student, teacher = (side.where(tokens.unsqueeze(-1), 0.0) for side in (student, teacher))
        else:
            tokens = None
        weights = self._weights(student.detach(), teacher.detach(), inputs.valid, tokens)
        mined: Tensor = ScaledGradient.apply(student, weights)  # type: ignore[no-untyped-call]
        return 1.0 - F.cosine_similarity(mined.flatten(1), teacher.flatten(1))

    def _weights(self, student: Tensor, teacher: Tensor, valid: Tensor | None, tokens: Tensor | None) -> Tensor:
        """Factors of the gradient at each position, of the shape of the features but for a width of 1."""
        axis = channel_axis(student.ndim)
        distances = (1.0 - F.cosine_similarity(student, teacher, dim=axis)).clamp(min=0.0)
        counted = torch.ones_like(distances)
        if tokens is not None:
            counted = counted * tokens
        if valid is not None:
            counted = counted * valid.view(-1, *[1] * (distances.ndim - 1))
        total, positions = self._everywhere(torch.stack([(distances * counted).sum(), counted.sum()]))
        return relative(distances, total / positions.clamp(min=1), self._gamma).unsqueeze(axis)


class ScaledGradient(torch.autograd.Function):
    """Identity of a floating feature (B, ...); its gradient is multiplied by weights that broadcast to it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weights: Tensor) -> Tensor:
        """The `value` (B, ...), floating; `weights` (B, ...) have axes of length 1 where it has others."""
        ctx.save_for_backward(weights)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient (B, ...) of the value; none of the weights."""
        (weights,) = ctx.saved_tensors
        return grad * weights, None


def relative(distances: Tensor, mean: Tensor, gamma: float) -> Tensor:
    """(distances / mean)^gamma of floating `distances` of any shape; 1 where the `mean`, a scalar, is 0."""
    none = mean <= ROUNDING * torch.finfo(distances.dtype).eps
    return torch.where(none, 1.0, (distances / mean.where(~none, 1.0)) ** gamma)
