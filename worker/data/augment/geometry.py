"""Crops, flip, cutout and blur of images; keypoints are transformed with them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.data.augmentation import Blur, Crop, Cutout, Flip, ResizedCrop
from worker.data.augment.base import Draws, Random, Scene, happens, integers, per_row, uniform
from worker.data.batches import Batch

IMAGES = "images"
KERNEL_SHARE, LEAST_SIGMA = 0.1, 0.1
"""Width of a blur's kernel as a share of the smaller side, and its smallest standard deviation in pixels."""


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


class ResizedCropStep:
    """`resized-crop`, bilinear; an aspect for which the area does not fit into the image is brought nearer to its
    own."""

    def __init__(self, spec: ResizedCrop) -> None:
        self._least, self._aspect = spec.least_area, spec.aspect

    def draw(self, scene: Scene, random: Random) -> Draws:
        """Shares of the sides that are kept, and of the rest that is left out on the top and on the left, (N,)."""
        bend = math.log(self._aspect)
        area = uniform(self._least, 1.0, scene.count, random("area"))
        aspect = uniform(-bend, bend, scene.count, random("aspect")).exp()
        width = (area * aspect).sqrt().clamp(max=1.0)
        width = torch.maximum(width, area)  # as high as the image at most
        sides = {"width": width, "height": area / width}
        return sides | {side: uniform(0.0, 1.0, scene.count, random(side)) for side in ("top", "left")}

    def apply(self, batch: Batch, draws: Draws) -> Batch:
        images = batch.inputs[IMAGES]
        rows, columns = (
            (1 - draws[size]) * (2 * draws[start] - 1) + draws[size] * _places(images.shape[axis], images.device)
            for size, start, axis in (("height", "top", 2), ("width", "left", 3))
        )
        across = columns.T.unsqueeze(1).expand(-1, images.shape[2], -1)
        down = rows.T.unsqueeze(2).expand(-1, -1, images.shape[3])
        grid = torch.stack([across, down], dim=-1)
        resized = F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)
        return with_images(batch, resized)


def _places(size: int, device: torch.device) -> Tensor:
    """Centres (size, 1) float64 of the pixels of an axis, from -1 to 1 at its ends."""
    return ((2 * torch.arange(size, device=device, dtype=torch.float64) + 1) / size - 1).unsqueeze(1)


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


class BlurStep:
    """`blur`: a Gaussian kernel in both directions, over the image mirrored at its border."""

    def __init__(self, spec: Blur) -> None:
        self._most, self._probability = spec.most_sigma, spec.probability

    def draw(self, scene: Scene, random: Random) -> Draws:
        blurred = happens(self._probability, scene.count, random("blurred"))
        return {"blurred": blurred, "sigma": uniform(LEAST_SIGMA, self._most, scene.count, random("sigma"))}

    def apply(self, batch: Batch, draws: Draws) -> Batch:
        images = batch.inputs[IMAGES]
        reach = max(1, round(min(images.shape[2:]) * KERNEL_SHARE / 2))
        if reach >= min(images.shape[2:]):  # nothing to mirror
            return batch
        weights = _gaussian(draws["sigma"], reach).to(images.dtype)
        found = _weighted(_weighted(images, weights, 2), weights, 3)
        return with_images(batch, torch.where(per_row(draws["blurred"], images), found, images))


def _gaussian(sigma: Tensor, reach: int) -> Tensor:
    """Weights (B, 2 reach + 1) of a Gaussian with standard deviations `sigma` (B,), floating."""
    places = torch.arange(-reach, reach + 1, device=sigma.device, dtype=sigma.dtype)
    return (-(places / sigma.unsqueeze(1)).square() / 2).softmax(1)


def _weighted(images: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Sums of neighbours along an axis of images (B, C, H, W), with weights (B, K) of each image."""
    reach, size = weights.shape[1] // 2, images.shape[axis]
    padded = F.pad(images, (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0), mode="reflect")
    found = torch.zeros_like(images)
    for place in range(weights.shape[1]):
        found += padded.narrow(axis, place, size) * per_row(weights[:, place], images)
    return found


def inside_box(box: Tensor, images: Tensor) -> Tensor:
    """Mask (B, 1, H, W) bool of boxes (B, 4), numbers: top, left, bottom, right, the latter two exclusive. `images` are
    (B, C, H, W)."""
    top, left, bottom, right = (per_row(side, images) for side in box.unbind(1))
    rows = torch.arange(images.shape[2], device=images.device).view(1, 1, -1, 1)
    columns = torch.arange(images.shape[3], device=images.device).view(1, 1, 1, -1)
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
