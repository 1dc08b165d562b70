"""Samples that are moved to a decision boundary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from app.recipe.students.architectures import Mlp
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from worker.students.boundary import search_boundary, search_settings
from worker.students.model import Model

COUNT = 20


class Line(nn.Module):
    """Logits (0, sharpness times the sum of the inputs)."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(sharpness))

    def forward(self, images: Tensor) -> Tensor:
        total = self.sharpness * images.flatten(1).sum(1)
        return torch.stack([torch.zeros_like(total), total], dim=1)


def model(sharpness: float = 1.0) -> Model:
    config = ModelConfig(
        architecture=Mlp(),
        input=ImageInput(channels=2, height=1, width=2),
        preprocessing=Preprocessing(scale=1 / 255, mean=[0.5, 0.4], std=[0.25, 0.2]),
        classes=2,
    )
    return Model(config, Line(sharpness)).eval()


def images() -> Tensor:
    return torch.randint(0, 256, (COUNT, 2, 1, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_a_step_has_the_length_of_the_difference_and_leads_straight_to_the_other_class() -> None:
    found = model()
    inputs = found.normalized(images())
    logits = found.forward_normalized(inputs)
    base = logits.argmax(-1)
    one = search_boundary(found.forward_normalized, inputs, base, 1 - base, search_settings(found, 1, 0.01, None))
    moves = (one.inputs - inputs).flatten(1)
    difference = (logits[:, 1] - logits[:, 0]).abs()
    torch.testing.assert_close(moves.norm(dim=1), 0.01 * (difference + 1e-4))
    signs = torch.where(base == 1, -1.0, 1.0)
    torch.testing.assert_close(moves, (signs * moves.norm(dim=1) / 2).unsqueeze(1).expand_as(moves))
    assert one.passes == COUNT


def test_samples_stop_where_they_leave_their_class_and_cost_nothing_from_there_on() -> None:
    found = model()
    inputs = found.normalized(images())
    base = found.forward_normalized(inputs).argmax(-1)
    settings = search_settings(found, 100, 0.3, [-10.0, 10.0])
    moved = search_boundary(found.forward_normalized, inputs, base, 1 - base, settings)
    after = found.forward_normalized(moved.inputs)
    assert (after.argmax(-1) != base).all()
    assert after[:, 1].abs().max() < 1e-3
    assert not moved.stuck.any()
    assert COUNT < moved.passes < 100 * COUNT
    again = search_boundary(found.forward_normalized, moved.inputs, base, 1 - base, settings)
    assert torch.equal(again.inputs, moved.inputs)
    assert again.passes == COUNT


def test_pixels_stay_pixels_and_given_bounds_hold() -> None:
    found = model()
    inputs = found.normalized(images())
    base = found.forward_normalized(inputs).argmax(-1)

    def moved(clip: list[float] | None) -> Tensor:
        settings = search_settings(found, 5, 50.0, clip)
        return search_boundary(found.forward_normalized, inputs, base, 1 - base, settings).inputs

    pixels, given = found.denormalized(moved(None)), moved([-0.5, 0.5])
    assert (pixels.min(), pixels.max()) == (pytest.approx(0, abs=1e-3), pytest.approx(255, abs=1e-3))
    assert (given.min(), given.max()) == (-0.5, 0.5)


def test_samples_without_a_gradient_stay_and_are_named() -> None:
    found = model(sharpness=0.0)
    inputs, base = found.normalized(images()), torch.zeros(COUNT, dtype=torch.int64)
    moved = search_boundary(found.forward_normalized, inputs, base, 1 - base, search_settings(found, 5, 0.3, None))
    assert moved.stuck.all()
    assert torch.equal(moved.inputs, inputs)


def test_raw_samples_come_back_from_what_the_network_is_given() -> None:
    found, raw = model(), images()
    torch.testing.assert_close(found.denormalized(found.normalized(raw)), raw.float(), atol=1e-3, rtol=0)
    assert torch.equal(found.forward_normalized(found.normalized(raw)), found(raw))
    assert found.in_pixel_range(raw)
    assert not found.in_pixel_range(raw.float() - 256)
    assert not found.in_pixel_range(raw.float() + 256)
