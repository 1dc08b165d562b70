"""Overhaul of feature distillation (1904.01866): margins for negative values, which the teacher's ReLU removes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from app.recipe.losses.features import MarginPair, Overhaul
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.features.activations import along_channels, width_of
from worker.losses.features.adapters import Joiner, Joint

RARE = 1e-3
"""Channels that are negative less often than this get a margin of three deviations."""


class OverhaulTerm:
    """Partial squared distance to the teacher's features after their margin ReLU, summed over entries and stages."""

    def __init__(self, spec: Overhaul, builder: LossBuilder) -> None:
        joiner = Joiner(builder, spec.name, spec.teacher, spec.adapter)
        self.stages = [
            (joiner.join(pair, f"pairs[{index}]"), _margins_of(pair, f"pairs[{index}]", spec.teacher, builder))
            for index, pair in enumerate(spec.pairs)
        ]

    def __call__(self, inputs: LossInputs) -> Tensor:
        return weigh_stages([self._stage(joint, margins, inputs) for joint, margins in self.stages])

    def _stage(self, joint: Joint, margins: Tensor, inputs: LossInputs) -> Tensor:
        student, teacher = joint(inputs)
        limits = along_channels(margins.to(teacher), teacher.ndim)
        return partial_squares(student, torch.maximum(teacher, limits))


def partial_squares(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum of squares of each row (B,) of floating features (B, ...), without entries where the teacher is not positive
    and the student is not above it."""
    squares = (student - teacher).square()
    return squares.where((student > teacher) | (teacher > 0.0), 0.0).flatten(1).sum(1)


def weigh_stages(losses: list[Tensor]) -> Tensor:
    """Weighted sum (B,) of the stages' losses (B,), each with half the weight of the next; the last has weight 1."""
    return torch.stack([loss * 0.5**behind for behind, loss in enumerate(reversed(losses))]).sum(0)


def margins(weight: Tensor, bias: Tensor) -> Tensor:
    """Mean of the negative part of N(bias, weight^2) for each channel, (C,) float64, from floating `weight` and `bias`
    (C,)."""
    deviation, mean = weight.double().abs().clamp(min=1e-12), bias.double()
    share = torch.special.ndtr(-mean / deviation)
    density = torch.exp(-((mean / deviation) ** 2) / 2) / math.sqrt(2.0 * math.pi)
    return torch.where(share > RARE, mean - deviation * density / share, -3.0 * deviation)


def _margins_of(pair: MarginPair, field: str, teacher: str | None, builder: LossBuilder) -> Tensor:
    path = pair.batch_norm or pair.teacher.path
    module = builder.teacher_module(path, teacher)
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not _is_batch_norm(module) or weight is None or bias is None:
        found = f"{path!r} of the teacher is a {type(module).__name__}"
        raise builder.refuse(f"{found}; accepted: a batch norm with weight and bias", f"{field}.batch_norm")
    if len(weight) != (width := width_of(builder.teacher(pair.teacher, teacher))):
        found = f"{path!r} of the teacher has {len(weight)} channels"
        raise builder.refuse(f"{found}; accepted: {width}, as at the tap", f"{field}.batch_norm")
    return margins(weight.detach(), bias.detach())


def _is_batch_norm(module: nn.Module) -> bool:
    """Also true of frozen ones, which have weight and bias as buffers and are separate classes."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) or "BatchNorm" in type(module).__name__
