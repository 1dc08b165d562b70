"""Augmentations of two views match kornia's functions, and draws keep to their ranges."""

from __future__ import annotations

import math

import kornia
import pytest
import torch
from torch import Tensor

from app.recipe.data.augmentation import Blur, ColorJitter, Grayscale, ResizedCrop
from worker.data.augment.base import AugmentStep, Draws, Scene
from worker.data.augment.colour import CHANGES, ColorJitterStep, GrayscaleStep
from worker.data.augment.geometry import BlurStep, ResizedCropStep
from worker.data.batches import whole_split
from worker.data.randomness import generator

COUNT = 12
IMAGES = torch.randint(256, (COUNT, 3, 40, 30), generator=torch.Generator().manual_seed(0)).float()
REFERENCES = {
    "brightness": kornia.enhance.adjust_brightness_accumulative,
    "contrast": kornia.enhance.adjust_contrast_with_mean_subtraction,
    "saturation": kornia.enhance.adjust_saturation_with_gray_subtraction,
    "hue": lambda images, turn: kornia.enhance.adjust_hue(images, 2 * torch.pi * turn),
}


def draws_of(step: AugmentStep, count: int = COUNT) -> Draws:
    return step.draw(Scene(count, 40, 30), lambda name: generator(3, name))


def applied(step: AugmentStep, draws: Draws, images: Tensor = IMAGES) -> Tensor:
    return step.apply(whole_split({"images": images}, torch.zeros(len(images))), draws).inputs["images"]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_colour_is_kornias(name: str) -> None:
    step = ColorJitterStep(ColorJitter(probability=1.0))
    draws = draws_of(step)
    alone = draws | {other: torch.ones(COUNT) * (other != "hue") for other in CHANGES if other != name}
    wanted = REFERENCES[name](IMAGES / 255, draws[name]) * 255
    assert (applied(step, alone) - wanted).abs().max() < 1.6  # rounded, the mean of the image first


def test_amounts_keep_to_their_ranges_and_orders_differ() -> None:
    draws = draws_of(ColorJitterStep(ColorJitter(brightness=0.3, hue=0.2, probability=0.5)), 2000)
    assert 0.7 <= float(draws["brightness"].min()) < 0.71
    assert 1.29 < float(draws["brightness"].max()) <= 1.3
    assert 0.19 < float(draws["hue"].abs().max()) <= 0.2
    assert 0.45 < float(draws["changed"].double().mean()) < 0.55
    assert len(torch.unique(draws["order"], dim=0)) == math.factorial(len(CHANGES))


def test_images_that_are_not_drawn_stay_as_they_are() -> None:
    for step in (
        ColorJitterStep(ColorJitter(probability=0.0)),
        GrayscaleStep(Grayscale(probability=0.0)),
        BlurStep(Blur(probability=0.0)),
    ):
        assert torch.equal(applied(step, draws_of(step)), IMAGES)


def test_grey_images_have_three_equal_channels_and_one_channel_stays() -> None:
    step = GrayscaleStep(Grayscale(probability=1.0))
    found = applied(step, draws_of(step))
    torch.testing.assert_close(found[:, :1], kornia.color.rgb_to_grayscale(IMAGES).round())
    assert torch.equal(found[:, 0], found[:, 2])
    assert torch.equal(applied(step, draws_of(step), IMAGES[:, :1]), IMAGES[:, :1])
    jitter = ColorJitterStep(ColorJitter(brightness=0.0, contrast=0.0, probability=1.0))
    assert torch.equal(applied(jitter, draws_of(jitter), IMAGES[:, :1]), IMAGES[:, :1])


def test_a_blur_is_kornias() -> None:
    step = BlurStep(Blur(probability=1.0))
    draws = draws_of(step)
    sigma = draws["sigma"].float().unsqueeze(1).expand(-1, 2)
    wanted = kornia.filters.gaussian_blur2d(IMAGES, (5, 5), sigma)
    assert 0.1 <= float(draws["sigma"].min()) < float(draws["sigma"].max()) <= 2.0
    torch.testing.assert_close(applied(step, draws), wanted, atol=1e-3, rtol=0)
    step, single = BlurStep(Blur(probability=1.0)), IMAGES[..., :1, :1]
    assert torch.equal(applied(step, draws_of(step), single), single)


def test_a_resized_crop_is_the_window_that_was_drawn() -> None:
    step = ResizedCropStep(ResizedCrop(least_area=0.2))
    draws = draws_of(step)
    boxes = []
    for height, width, top, left in zip(
        *(draws[name].tolist() for name in ("height", "width", "top", "left")), strict=True
    ):
        y, x, down, right = (1 - height) * top * 40, (1 - width) * left * 30, height * 40, width * 30
        boxes.append([[x, y], [x + right, y], [x + right, y + down], [x, y + down]])
    corners = torch.tensor(boxes, dtype=torch.float64) - 0.5  # of the pixels, whose centres kornia names
    size = torch.tensor([[-0.5, -0.5], [29.5, -0.5], [29.5, 39.5], [-0.5, 39.5]], dtype=torch.float64)
    transform = kornia.geometry.get_perspective_transform(corners, size.expand(COUNT, 4, 2))
    wanted = kornia.geometry.warp_perspective(IMAGES.double(), transform, (40, 30), padding_mode="border")
    torch.testing.assert_close(applied(step, draws).double(), wanted, atol=0.05, rtol=0)


def test_a_resized_crop_has_its_area_and_stays_within_the_image() -> None:
    draws = draws_of(ResizedCropStep(ResizedCrop(least_area=0.3, aspect=2.0)), 4000)
    area, aspect = draws["width"] * draws["height"], draws["width"] / draws["height"]
    assert 0.3 <= float(area.min()) < 0.31
    assert 0.99 < float(area.max()) <= 1.0 + 1e-12
    assert float(aspect.min()) >= 0.5 - 1e-12
    assert float(aspect.max()) <= 2.0 + 1e-12
    assert float(torch.maximum(draws["width"], draws["height"]).max()) <= 1.0 + 1e-12
    whole = ResizedCropStep(ResizedCrop(least_area=1.0))
    torch.testing.assert_close(applied(whole, draws_of(whole)), IMAGES, atol=1e-3, rtol=0)
