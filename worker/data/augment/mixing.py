"""Mixes pairs of samples, and their labels in the same proportion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from app.recipe.data.augmentation import CutMix, Mixup, SelfMix
from worker.data.augment.base import Draws, Random, Scene, happens, per_row
from worker.data.augment.geometry import IMAGES
from worker.data.batches import Batch
from worker.data.selfmix import Mixed, draw_boxes, paste

TABLE = "table"


class MixStep:
    """`mixup`, `cutmix` or `self-mix`: the latter mixes two views of one sample, the others two samples."""

    def __init__(self, spec: Mixup | CutMix | SelfMix) -> None:
        self.within = isinstance(spec, SelfMix)
        self._boxed = isinstance(spec, CutMix) or (isinstance(spec, SelfMix) and spec.how == "box")
        self._alpha, self._probability = spec.alpha, spec.probability

    def draw(self, scene: Scene, random: Random) -> Draws:
        """`mixed` (N,) bool, and `share` (N,) float32 of the first sample or `box` (N, 4) from the second."""
        share = _beta(self._alpha, scene.count, random("share"))
        mixed = happens(self._probability, scene.count, random("mixed"))
        if not self._boxed:
            return {"mixed": mixed, "share": share.float()}
        centre = torch.rand((scene.count, 2), generator=random("centre"), dtype=torch.float64)
        return {"mixed": mixed, "box": draw_boxes(share, centre, torch.Size([scene.height, scene.width]))}

    def join(self, batch: Batch, other: Batch, draws: Draws) -> Batch:
        """Mix `batch` with `other`, row by row, where `mixed` is true; targets are (B, C) float32 or (B,) or (B, T)
        numbers."""
        input_key = IMAGES if IMAGES in batch.inputs else TABLE
        first, second, chosen = batch.inputs[input_key], other.inputs[input_key], draws["mixed"]
        both = paste(first, second, draws["box"]) if self._boxed else _blend(first, second, draws["share"])
        labels = _blend(batch.targets, other.targets, both.share).images
        mixed = torch.where(per_row(chosen, first), both.images, first)
        targets = torch.where(per_row(chosen, labels), labels, batch.targets)
        return replace(batch, inputs={**batch.inputs, input_key: mixed}, targets=targets)


def _blend(first: Tensor, second: Tensor, share: Tensor) -> Mixed:
    """Weighted means of the rows of two tensors (B, ...), with `share` (B,) of the first."""
    part = per_row(share, first).to(first.dtype)
    return Mixed(part * first + (1 - part) * second, share)


def _beta(alpha: float, count: int, random: torch.Generator) -> Tensor:
    """Draws (count,) float64 from the Beta distribution with both parameters `alpha`."""
    seed = int(torch.randint(2**62, (1,), generator=random))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count))
