"""What is measured on the training samples and belongs to the model: the scale of its inputs and of its answers."""

from __future__ import annotations

import torch
from torch import Tensor

from app.recipe.students.model import Preprocessing, TargetScaling

STD_FLOOR = 1e-3
"""In scaled units; a channel that is nearly constant is centred but not blown up."""


def fit_preprocessing(samples: Tensor) -> Preprocessing:
    """Scale of raw values, and mean and standard deviation of each channel (N, C, H, W) or column (N, D)."""
    scale = 1 / 255 if samples.dtype == torch.uint8 else 1.0
    channels = range(samples.shape[1])  # one at a time: the copy in float64 stays small
    moments = [_moments(samples[:, channel].double() * scale) for channel in channels]
    floor = STD_FLOOR if samples.ndim == 4 else 0.0
    return Preprocessing(
        scale=scale, mean=[mean for mean, _ in moments], std=[_at_least(floor, std) for _, std in moments]
    )


def fit_targets(targets: Tensor) -> TargetScaling:
    """Mean and standard deviation of each number to answer with, over `targets` (N, T)."""
    moments = [_moments(targets[:, column].double()) for column in range(targets.shape[1])]
    return TargetScaling(mean=[mean for mean, _ in moments], std=[_at_least(0.0, std) for _, std in moments])


def _moments(values: Tensor) -> tuple[float, float]:
    std, mean = torch.std_mean(values, correction=0)
    return float(mean), float(std)


def _at_least(floor: float, std: float) -> float:
    """A deviation to divide by; columns have units of their own, so that only a constant one is left as it is."""
    return max(std, floor) or 1.0
