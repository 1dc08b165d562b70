"""What augmentations have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from worker.data.batches import Batch

Draws = dict[str, Tensor]
"""What was drawn for one epoch, by name; the first axis counts the samples."""
Random = Callable[[str], torch.Generator]
"""A generator for one purpose within an epoch and a step."""


@dataclass(frozen=True)
class Scene:
    """What a step may know of the samples before it draws."""

    count: int
    height: int
    width: int


class AugmentStep(Protocol):
    """Changes each sample on its own."""

    def draw(self, scene: Scene, random: Random) -> Draws:
        """Draw for all samples."""

    def apply(self, batch: Batch, draws: Draws) -> Batch:
        """Change the samples of `batch` as `draws`, one row for each of them, says. Images are float32, 0 to 255."""


def integers(high: int, count: int, random: torch.Generator) -> Tensor:
    """(count,) int64, uniform over 0 to high - 1."""
    return torch.randint(high, (count,), generator=random)


def happens(probability: float, count: int, random: torch.Generator) -> Tensor:
    """(count,) bool, true with this probability."""
    return torch.rand(count, generator=random, dtype=torch.float64) < probability


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) with as many axes as `like` (B, ...), to broadcast over each row."""
    return values.view(-1, *[1] * (like.ndim - 1))
