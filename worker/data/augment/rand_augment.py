"""RandAugment (arXiv 1909.13719), with separate draws for each image.

After every operation pixels are rounded to whole numbers, as in an image file. So sums over an image are exact in any
order of summation, and an augmented image is the same in every batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import kornia.enhance
import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.data.augmentation import RandAugment
from worker.data.augment.base import Draws, Random, Scene, per_row
from worker.data.augment.geometry import IMAGES, with_images
from worker.data.batches import Batch

STRONGEST = 30.0
"""Magnitude of the ends of the ranges below, which are those of AutoAugment (arXiv 1805.09501)."""
SHEAR, TURN, SHIFT, CHANGE, BITS = 0.3, math.radians(30.0), 150 / 331, 0.9, 4

Amount = Tensor
"""(B,) float32: strength from -1 to 1; from 0 to 1 for operations with one direction."""


class _Operation(NamedTuple):
    name: str
    apply: Callable[[Tensor, Amount], Tensor]
    """Images (B, C, H, W) of whole numbers, 0 to 255."""
    signed: bool = False


def _unit(change: Callable[[Tensor, Amount], Tensor]) -> Callable[[Tensor, Amount], Tensor]:
    """Wraps an operation on pixels from 0 to 1."""
    return lambda images, amount: change(images / 255, amount) * 255


def _factor(amount: Amount) -> Tensor:
    return 1 + CHANGE * amount


def _auto_contrast(images: Tensor, _: Amount) -> Tensor:
    stretched = kornia.enhance.normalize_min_max(images, 0.0, 255.0)
    return torch.where(images.amax((2, 3), keepdim=True) > images.amin((2, 3), keepdim=True), stretched, images)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Interpolates between the mean of the grey image and the image (B, C, H, W), or extrapolates, by `factor` (B,)."""
    grey = grey_of(images).round()
    mean = (grey.sum((1, 2, 3), dtype=torch.float64) / grey[0].numel()).round().float()
    return between(per_row(mean, images), images, factor)


def grey_of(images: Tensor) -> Tensor:
    """The luma (B, 1, H, W) of images of three channels; those of one as they are."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def _sharpness(images: Tensor, amount: Amount) -> Tensor:
    """Extrapolates from a blurred image, or interpolates towards it; the 3x3 blur has weight 5 in the middle, else
    1."""
    _, _, height, width = images.shape
    if min(height, width) < 3:
        return images
    near = sum(
        images[:, :, down : down + height - 2, right : right + width - 2] for down in range(3) for right in range(3)
    )
    inner = images[:, :, 1:-1, 1:-1]
    blurred = images.clone()
    blurred[:, :, 1:-1, 1:-1] = ((near + 4 * inner) / 13).round()
    return between(blurred, images, _factor(amount))


def between(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """From `start` to `end` (B, C, H, W) by `share` (B,) of the way, or beyond."""
    return start + (end - start) * per_row(share, end)


def _posterize(images: Tensor, amount: Amount) -> Tensor:
    step = per_row(2.0 ** (BITS * amount).round(), images)
    return (images / step).floor() * step


def _solarize(images: Tensor, amount: Amount) -> Tensor:
    return torch.where(images < per_row(255 * (1 - amount), images), images, 255 - images)


def _moved(images: Tensor, matrix: list[Tensor | float]) -> Tensor:
    """Affine transform: pixels from (a x + b y + c, d x + e y + f), relative to the image's centre; bilinear, 0 from
    outside."""
    _, _, height, width = images.shape
    y = (torch.arange(height, device=images.device) - (height - 1) / 2).view(1, -1, 1)
    x = (torch.arange(width, device=images.device) - (width - 1) / 2).view(1, 1, -1)
    a, b, c, d, e, f = (part.view(-1, 1, 1) if isinstance(part, Tensor) else part for part in matrix)
    column, row = a * x + b * y + c, d * x + e * y + f
    coordinates = [2 * column / width, 2 * row / height]
    grid = torch.stack([coordinate.expand(len(images), height, width) for coordinate in coordinates], dim=-1)
    return F.grid_sample(images, grid, align_corners=False)


def _rotate(images: Tensor, amount: Amount) -> Tensor:
    cosine, sine = torch.cos(TURN * amount), torch.sin(TURN * amount)
    return _moved(images, [cosine, sine, 0.0, -sine, cosine, 0.0])


def _shear_x(images: Tensor, amount: Amount) -> Tensor:
    return _moved(images, [1.0, SHEAR * amount, 0.0, 0.0, 1.0, 0.0])


def _shear_y(images: Tensor, amount: Amount) -> Tensor:
    return _moved(images, [1.0, 0.0, 0.0, SHEAR * amount, 1.0, 0.0])


def _shift_x(images: Tensor, amount: Amount) -> Tensor:
    return _moved(images, [1.0, 0.0, SHIFT * images.shape[3] * amount, 0.0, 1.0, 0.0])


def _shift_y(images: Tensor, amount: Amount) -> Tensor:
    return _moved(images, [1.0, 0.0, 0.0, 0.0, 1.0, SHIFT * images.shape[2] * amount])


OPERATIONS = (
    _Operation("identity", lambda images, _: images),
    _Operation("auto-contrast", _auto_contrast),
    _Operation("equalize", _unit(lambda images, _: kornia.enhance.equalize(images))),
    _Operation("rotate", _rotate, signed=True),
    _Operation("solarize", _solarize),
    _Operation(
        "color",
        _unit(lambda images, amount: kornia.enhance.adjust_saturation_with_gray_subtraction(images, _factor(amount))),
        signed=True,
    ),
    _Operation("posterize", _posterize),
    _Operation("contrast", lambda images, amount: contrast(images, _factor(amount)), signed=True),
    _Operation(
        "brightness",
        _unit(lambda images, amount: kornia.enhance.adjust_brightness_accumulative(images, _factor(amount))),
        signed=True,
    ),
    _Operation("sharpness", _sharpness, signed=True),
    _Operation("shear-x", _shear_x, signed=True),
    _Operation("shear-y", _shear_y, signed=True),
    _Operation("translate-x", _shift_x, signed=True),
    _Operation("translate-y", _shift_y, signed=True),
)


class RandAugmentStep:
    """`rand-augment`. The host waits for the device once per batch, because shapes depend on the drawn operations."""

    def __init__(self, spec: RandAugment) -> None:
        self._operations, self._strength = spec.operations, spec.magnitude / STRONGEST

    def draw(self, scene: Scene, random: Random) -> Draws:
        shape = (scene.count, self._operations)
        return {
            "operation": torch.randint(len(OPERATIONS), shape, generator=random("operation"), dtype=torch.int16),
            "sign": torch.randint(2, shape, generator=random("sign"), dtype=torch.int8) * 2 - 1,
        }

    def apply(self, batch: Batch, draws: Draws) -> Batch:
        images = batch.inputs[IMAGES].clone()
        chosen = draws["operation"].cpu()
        for position in range(self._operations):
            for number in sorted(set(chosen[:, position].tolist())):
                rows = (chosen[:, position] == number).nonzero().squeeze(1).to(images.device)
                sign = draws["sign"][rows, position] if OPERATIONS[number].signed else torch.ones_like(rows)
                changed = OPERATIONS[number].apply(images[rows], sign * self._strength)
                images[rows] = changed.round().clamp(0, 255)
        return with_images(batch, images)
