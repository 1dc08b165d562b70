"""The operations match the well-known image library, to a level of 255."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from app.recipe.data.augmentation import RandAugment
from worker.data.augment.base import Scene
from worker.data.augment.rand_augment import OPERATIONS, RandAugmentStep
from worker.data.batches import whole_split
from worker.data.randomness import generator

BY_NAME = {operation.name: operation for operation in OPERATIONS}
NOISE = torch.randint(40, 220, (6, 3, 16, 20), generator=torch.Generator().manual_seed(1)).float()
RAMP = torch.linspace(30, 200, 320).round().view(1, 1, 16, 20).expand(2, 3, 16, 20)
IMAGES = torch.cat([NOISE, RAMP])
Reference = Callable[[Image.Image], Image.Image]


def apply(name: str, images: Tensor, amount: float) -> Tensor:
    found = BY_NAME[name].apply(images, torch.full((len(images),), amount))
    return found.round().clamp(0, 255)


def reference(change: Reference, images: Tensor) -> Tensor:
    pixels = images.permute(0, 2, 3, 1).numpy().astype(np.uint8)
    return torch.stack([torch.from_numpy(np.array(change(Image.fromarray(one)))) for one in pixels]).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("name", "amount", "change"),
    [
        ("identity", 0.3, lambda image: image),
        ("auto-contrast", 0.3, ImageOps.autocontrast),
        ("solarize", 0.4, lambda image: ImageOps.solarize(image, 153)),
        ("posterize", 0.5, lambda image: ImageOps.posterize(image, 6)),
        ("posterize", 1.0, lambda image: ImageOps.posterize(image, 4)),
        ("color", 0.5, lambda image: ImageEnhance.Color(image).enhance(1.45)),
        ("color", -1.0, lambda image: ImageEnhance.Color(image).enhance(0.1)),
        ("contrast", 0.5, lambda image: ImageEnhance.Contrast(image).enhance(1.45)),
        ("contrast", -0.5, lambda image: ImageEnhance.Contrast(image).enhance(0.55)),
        ("brightness", -0.5, lambda image: ImageEnhance.Brightness(image).enhance(0.55)),
        ("brightness", 0.5, lambda image: ImageEnhance.Brightness(image).enhance(1.45)),
        ("sharpness", 1.0, lambda image: ImageEnhance.Sharpness(image).enhance(1.9)),
        ("sharpness", -1.0, lambda image: ImageEnhance.Sharpness(image).enhance(0.1)),
        ("rotate", 1.0, lambda image: image.rotate(-30, Image.Resampling.BILINEAR)),
        (
            "shear-x",
            1.0,
            lambda image: image.transform(
                image.size, Image.Transform.AFFINE, (1, 0.3, -0.3 * 8, 0, 1, 0), Image.Resampling.BILINEAR
            ),
        ),
        (
            "shear-y",
            -1.0,
            lambda image: image.transform(
                image.size, Image.Transform.AFFINE, (1, 0, 0, -0.3, 1, 0.3 * 10), Image.Resampling.BILINEAR
            ),
        ),
    ],
)
def test_an_operation_does_what_it_is_named_after(name: str, amount: float, change: Reference) -> None:
    found, wanted = apply(name, IMAGES, amount), reference(change, IMAGES).float()
    inside = (slice(None), slice(None), slice(4, -4), slice(6, -6)) if name in {"rotate", "shear-x", "shear-y"} else ...
    assert (found - wanted)[inside].abs().max() <= 1


def test_equalizing_spreads_the_levels_over_the_range() -> None:
    found, wanted = apply("equalize", IMAGES, 0.3), reference(ImageOps.equalize, IMAGES).float()
    assert (found - wanted).abs().max() <= 2
    assert (found.amax((2, 3)) > 250).all()


@pytest.mark.parametrize(("name", "axis"), [("translate-x", 3), ("translate-y", 2)])
def test_a_translation_moves_by_its_share_of_the_side(name: str, axis: int) -> None:
    amount = 3 / (150 / 331 * IMAGES.shape[axis])
    kept = IMAGES.shape[axis] - 3
    found = apply(name, IMAGES, amount)
    assert torch.equal(found.narrow(axis, 0, kept), IMAGES.narrow(axis, 3, kept))
    assert (found.narrow(axis, kept, 3) == 0).all()


@pytest.mark.parametrize("name", BY_NAME)
def test_a_constant_image_and_a_tiny_one_stay_sound(name: str) -> None:
    for images in (torch.full((2, 3, 8, 8), 77.0), torch.full((2, 1, 1, 1), 5.0), torch.full((1, 1, 8, 8), 0.0)):
        assert apply(name, images, 0.7).isfinite().all()
    assert torch.equal(apply("auto-contrast", torch.full((2, 3, 8, 8), 77.0), 0.3), torch.full((2, 3, 8, 8), 77.0))


@pytest.mark.parametrize("name", BY_NAME)
def test_an_operation_gives_each_image_the_same_in_any_company(name: str) -> None:
    images = torch.randint(256, (130, 3, 33, 31), generator=torch.Generator().manual_seed(3)).float()
    together = apply(name, images, 0.37)
    for first, size in ((0, 1), (64, 17), (5, 100)):
        assert torch.equal(apply(name, images[first : first + size], 0.37), together[first : first + size])


def test_magnitude_0_with_every_operation_changes_little() -> None:
    step = RandAugmentStep(RandAugment(operations=1, magnitude=0.0))
    samples = whole_split({"images": IMAGES}, torch.zeros(8))
    draws = step.draw(Scene(8, 16, 20), lambda name: generator(1, name))
    for number, operation in enumerate(OPERATIONS):
        draws["operation"][:] = number
        if operation.name not in {"auto-contrast", "equalize"}:
            found = step.apply(samples, draws).inputs["images"]
            assert (found - IMAGES).abs().max() <= 1, operation.name
