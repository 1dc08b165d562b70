"""Statistics of the training samples that are part of the model: the scales of its inputs and outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from app.recipe.students.model import Preprocessing, TargetScaling

STD_FLOOR = 1e-3
"""Least standard deviation, in scaled units: a nearly constant channel is centred but not amplified."""


def fit_preprocessing(samples: Tensor) -> Preprocessing:
    """Scale of raw values, and mean and standard deviation of each channel or column, from `samples` (N, C, H, W) or
    (N, D), uint8 or floating."""
    scale = 1 / 255 if samples.dtype == torch.uint8 else 1.0
    channels = range(samples.shape[1])  # one at a time: the copy in float64 stays small
    moments = [_moments(samples[:, channel].double() * scale) for channel in channels]
    floor = STD_FLOOR if samples.ndim == 4 else 0.0
    return Preprocessing(
        scale=scale, mean=[mean for mean, _ in moments], std=[_at_least(floor, std) for _, std in moments]
    )


def fit_targets(targets: Tensor) -> TargetScaling:
    """Mean and standard deviation of each column of floating `targets` (N, T)."""
    moments = [_moments(targets[:, column].double()) for column in range(targets.shape[1])]
    return TargetScaling(mean=[mean for mean, _ in moments], std=[_at_least(0.0, std) for _, std in moments])


def _moments(values: Tensor) -> tuple[float, float]:
    std, mean = torch.std_mean(values, correction=0)
    return float(mean), float(std)


def _at_least(floor: float, std: float) -> float:
    """A deviation to divide by; columns may have any unit, so that only a constant one is left unchanged."""
    return max(std, floor) or 1.0
