"""Crop, flip and cutout of images; keypoints are transformed with them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from app.recipe.data.augmentation import Crop, Cutout, Flip
from worker.data.augment.base import Draws, Random, Scene, happens, integers, per_row
from worker.data.batches import Batch

IMAGES = "images"


def with_images(batch: Batch, images: Tensor, targets: Tensor | None = None) -> Batch:
    """The batch with new images (B, C, H, W) float32, and new targets (B, ...) if given."""
    inputs = {**batch.inputs, IMAGES: images}
    return replace(batch, inputs=inputs, targets=batch.targets if targets is None else targets)


class CropStep:
    """`crop`; with `points`, targets are x, y of each point, as fractions of width and height."""

    def __init__(self, spec: Crop, *, points: bool) -> None:
        self._padding, self._points = spec.padding, points

    def draw(self, scene: Scene, random: Random) -> Draws:
        places = 2 * self._padding + 1
        return {side: integers(places, scene.count, random(side)) for side in ("top", "left")}

    def apply(self, batch: Batch, draws: Draws) -> Batch:
        images = batch.inputs[IMAGES]
        _, _, height, width = images.shape
        down, right = draws["top"] - self._padding, draws["left"] - self._padding
        moved = _shifted(_shifted(images, down, 2), right, 3)
        if not self._points:
            return with_images(batch, moved)
        offsets = torch.stack([right / width, down / height], dim=1).to(batch.targets.dtype)
        points = batch.targets.view(len(batch), -1, 2) - offsets[:, None]
        return with_images(batch, moved, points.flatten(1))


def _shifted(images: Tensor, by: Tensor, axis: int) -> Tensor:
    """Images (B, C, H, W) shifted by `by` pixels (B,) int64 along an axis; 0 from outside."""
    size = images.shape[axis]
    shape = [len(by), 1, 1, 1]
    shape[axis] = size
    source = (by[:, None] + torch.arange(size, device=by.device)).view(shape)
    inside = (source >= 0) & (source < size)
    found = images.gather(axis, source.clamp(0, size - 1).expand_as(images))
    return torch.where(inside, found, torch.zeros((), dtype=images.dtype, device=images.device))


class FlipStep:
    """`flip`; with `pairs` of points, targets are x, y of each point, as fractions of width and height."""

    def __init__(self, spec: Flip) -> None:
        self._probability, self._pairs = spec.probability, spec.pairs

    def draw(self, scene: Scene, random: Random) -> Draws:
        return {"flipped": happens(self._probability, scene.count, random("flipped"))}

    def apply(self, batch: Batch, draws: Draws) -> Batch:
        images, flipped = batch.inputs[IMAGES], draws["flipped"]
        mirrored = torch.where(per_row(flipped, images), images.flip(3), images)
        if self._pairs is None:
            return with_images(batch, mirrored)
        targets = torch.where(flipped[:, None], self._mirror(batch.targets), batch.targets)
        return with_images(batch, mirrored, targets)

    def _mirror(self, targets: Tensor) -> Tensor:
        points = targets.view(len(targets), -1, 2)
        order = list(range(points.shape[1]))
        for first, second in self._pairs or ():
            order[first], order[second] = second, first
        swapped = points[:, torch.tensor(order, device=targets.device)]
        return torch.stack([1 - swapped[..., 0], swapped[..., 1]], dim=-1).flatten(1)


class CutoutStep:
    """`cutout`."""

    def __init__(self, spec: Cutout) -> None:
        self._size, self._probability = spec.size, spec.probability

    def draw(self, scene: Scene, random: Random) -> Draws:
        cut = happens(self._probability, scene.count, random("cut"))
        centre = {"y": scene.height, "x": scene.width}
        return {"cut": cut} | {axis: integers(size, scene.count, random(axis)) for axis, size in centre.items()}

    def apply(self, batch: Batch, draws: Draws) -> Batch:
        images = batch.inputs[IMAGES]
        top, left = (draws[axis] - self._size // 2 for axis in ("y", "x"))
        hole = inside_box(torch.stack([top, left, top + self._size, left + self._size], dim=1), images)
        hole &= per_row(draws["cut"], images)
        return with_images(batch, images.masked_fill(hole, 0.0))


def inside_box(box: Tensor, images: Tensor) -> Tensor:
    """Mask (B, 1, H, W) bool of boxes (B, 4), numbers: top, left, bottom, right, the latter two exclusive. `images` are
    (B, C, H, W)."""
    top, left, bottom, right = (per_row(side, images) for side in box.unbind(1))
    rows = torch.arange(images.shape[2], device=images.device).view(1, 1, -1, 1)
    columns = torch.arange(images.shape[3], device=images.device).view(1, 1, 1, -1)
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
