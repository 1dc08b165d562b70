"""Random changes of colour (SimCLR, 2002.05709), as kornia defines them, with separate draws for each image.

After every operation pixels are rounded to whole numbers, as in an image file, so that an augmented image is the same
in every batch.
"""

from __future__ import annotations

from collections.abc import Callable

import kornia.enhance
import torch
from torch import Tensor

from app.recipe.data.augmentation import ColorJitter, Grayscale
from worker.data.augment.base import Draws, Random, Scene, happens, per_row, uniform
from worker.data.augment.geometry import IMAGES, with_images
from worker.data.augment.rand_augment import between, contrast, grey_of
from worker.data.batches import Batch

Change = Callable[[Tensor, Tensor], Tensor]
"""Changes images (B, C, H, W) of whole numbers, 0 to 255, by amounts (B,) float32."""


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return images * per_row(factor, images)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    return between(grey_of(images), images, factor)


def _hue(images: Tensor, turn: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    return kornia.enhance.adjust_hue(images / 255, 2 * torch.pi * turn) * 255


CHANGES: dict[str, Change] = {
    "brightness": _brightness,
    "contrast": contrast,
    "saturation": _saturation,
    "hue": _hue,
}
"""Amounts are factors, and of the hue a share of the circle."""


class ColorJitterStep:
    """`color-jitter`. The host waits for the device once per batch, because shapes depend on the drawn order."""

    def __init__(self, spec: ColorJitter) -> None:
        self._spec = spec

    def draw(self, scene: Scene, random: Random) -> Draws:
        """`changed` (N,) bool, the amount of each change (N,) float32, and in `order` (N, 4) int64 their numbers."""
        spread = {name: getattr(self._spec, name) for name in CHANGES}
        middle = {name: 0.0 if name == "hue" else 1.0 for name in CHANGES}
        amounts = {
            name: uniform(middle[name] - most, middle[name] + most, scene.count, random(name)).float()
            for name, most in spread.items()
        }
        order = torch.rand((scene.count, len(CHANGES)), generator=random("order"), dtype=torch.float64).argsort(1)
        changed = happens(self._spec.probability, scene.count, random("changed"))
        return {"changed": changed, "order": order, **amounts}

    def apply(self, batch: Batch, draws: Draws) -> Batch:
        images = batch.inputs[IMAGES].clone()
        order = draws["order"].where(draws["changed"].unsqueeze(1), -1).cpu()
        for position in range(len(CHANGES)):
            for number, (name, change) in enumerate(CHANGES.items()):
                rows = (order[:, position] == number).nonzero().squeeze(1).to(images.device)
                if len(rows):
                    images[rows] = change(images[rows], draws[name][rows]).round().clamp(0, 255)
        return with_images(batch, images)


class GrayscaleStep:
    """`grayscale`."""

    def __init__(self, spec: Grayscale) -> None:
        self._probability = spec.probability

    def draw(self, scene: Scene, random: Random) -> Draws:
        return {"grey": happens(self._probability, scene.count, random("grey"))}

    def apply(self, batch: Batch, draws: Draws) -> Batch:
        images = batch.inputs[IMAGES]
        return with_images(batch, torch.where(per_row(draws["grey"], images), grey_of(images).round(), images))
