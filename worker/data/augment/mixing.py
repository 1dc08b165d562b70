"""Joins pairs of samples, and their labels in the same proportion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from app.recipe.augmentation import CutMix, Mixup, SelfMix
from worker.data.augment.base import Draws, Random, Scene, happens, integers, per_row
from worker.data.augment.geometry import IMAGES, inside_box
from worker.data.batches import Batch

TABLE = "table"


class MixStep:
    """`mixup`, `cutmix` or `self-mix`: the latter joins two views of one sample, the others two samples."""

    def __init__(self, spec: Mixup | CutMix | SelfMix) -> None:
        self.within = isinstance(spec, SelfMix)
        self._boxed = isinstance(spec, CutMix) or (isinstance(spec, SelfMix) and spec.how == "box")
        self._alpha, self._probability = spec.alpha, spec.probability

    def draw(self, scene: Scene, random: Random) -> Draws:
        """`mixed` (N,) bool, `share` (N,) float32 of the sample itself, and `box` (N, 4) of the other."""
        share = _beta(self._alpha, scene.count, random("share"))
        mixed = happens(self._probability, scene.count, random("mixed"))
        if not self._boxed:
            return {"mixed": mixed, "share": share.float()}
        box = _box(share, scene, random)
        area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
        return {"mixed": mixed, "share": (1 - area / (scene.height * scene.width)).float(), "box": box}

    def join(self, batch: Batch, other: Batch, draws: Draws) -> Batch:
        """Mix `batch` with `other`, row by row, where `mixed` says so."""
        view = IMAGES if IMAGES in batch.inputs else TABLE
        own, theirs = batch.inputs[view], other.inputs[view]
        both = torch.where(inside_box(draws["box"], own), theirs, own) if self._boxed else _blend(own, theirs, draws)
        mixed = torch.where(per_row(draws["mixed"], own), both, own)
        targets = torch.where(draws["mixed"][:, None], _blend(batch.targets, other.targets, draws), batch.targets)
        return replace(batch, inputs={**batch.inputs, view: mixed}, targets=targets)


def _blend(first: Tensor, second: Tensor, draws: Draws) -> Tensor:
    share = per_row(draws["share"], first)
    return share * first + (1 - share) * second


def _beta(alpha: float, count: int, random: torch.Generator) -> Tensor:
    """(count,) float64 from the Beta distribution with both parameters `alpha`."""
    seed = int(torch.randint(2**62, (1,), generator=random))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count))


def _box(share: Tensor, scene: Scene, random: Random) -> Tensor:
    """Boxes (N, 4) of top, left, bottom, right that leave about `share` of an image; clipped, so often more of it."""
    sides = []
    for axis, size in (("y", scene.height), ("x", scene.width)):
        half = ((1 - share).sqrt() * size).long() // 2
        centre = integers(size, scene.count, random(axis))
        sides.append(((centre - half).clamp(0, size), (centre + half).clamp(0, size)))
    (top, bottom), (left, right) = sides
    return torch.stack([top, left, bottom, right], dim=1)
