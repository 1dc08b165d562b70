"""Interface and helpers of augmentations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from worker.data.batches import Batch

Draws = dict[str, Tensor]
"""Draws of one epoch, by name: tensors (N, ...), one row per sample."""
Random = Callable[[str], torch.Generator]
"""Returns a generator for one purpose within an epoch and a step."""


@dataclass(frozen=True)
class Scene:
    """Facts about the samples that a step needs for its draws."""

    count: int
    height: int
    width: int


class AugmentStep(Protocol):
    """Augments each sample separately."""

    def draw(self, scene: Scene, random: Random) -> Draws:
        """Draws for all samples: tensors (N, ...)."""

    def apply(self, batch: Batch, draws: Draws) -> Batch:
        """The batch augmented by `draws`, tensors (B, ...). Images are (B, C, H, W) float32, 0 to 255."""


def integers(high: int, count: int, random: torch.Generator) -> Tensor:
    """Integers (count,) int64, uniform over 0 to high - 1."""
    return torch.randint(high, (count,), generator=random)


def happens(probability: float, count: int, random: torch.Generator) -> Tensor:
    """Draws (count,) bool, true with this probability."""
    return torch.rand(count, generator=random, dtype=torch.float64) < probability


def uniform(low: float, high: float, count: int, random: torch.Generator) -> Tensor:
    """Numbers (count,) float64, uniform from `low` to `high`."""
    return low + (high - low) * torch.rand(count, generator=random, dtype=torch.float64)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) of any dtype, reshaped to broadcast over `like` (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))
