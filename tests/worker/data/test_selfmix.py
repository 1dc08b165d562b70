"""Two crops of one image: which pixels are pasted, and which random numbers decide it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worker.data.selfmix import Mixed, draw_boxes, paste

HEIGHT, WIDTH = 6, 10
BLACK, WHITE = torch.zeros(1, 2, HEIGHT, WIDTH), torch.ones(1, 2, HEIGHT, WIDTH)


def crops(count: int = 7) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    first, second = (torch.rand(count, 3, HEIGHT, WIDTH, generator=random) for _ in range(2))
    return first, second


def draws(count: int = 7) -> tuple[Tensor, Tensor]:
    """Shares and centres."""
    random = torch.Generator().manual_seed(1)
    return torch.rand(count, generator=random), torch.rand(count, 2, generator=random)


def mixed(first: Tensor, second: Tensor, share: Tensor, centre: Tensor) -> Mixed:
    """Crops with a box in them, by numbers that are drawn."""
    return paste(first, second, draw_boxes(share, centre, first.shape[-2:]))


def test_a_box_is_pasted_at_its_position() -> None:
    found = paste(BLACK, WHITE, torch.tensor([[1, 2, 4, 7]]))
    expected = torch.zeros(HEIGHT, WIDTH)
    expected[1:4, 2:7] = 1.0
    assert torch.equal(found.images[0, 1], expected)
    assert found.share.tolist() == [pytest.approx(1.0 - 15 / 60)]


def test_boxes_have_their_share_of_the_area_and_stay_inside() -> None:
    """A quarter of the area is half of each side; around a corner a quarter of that is left."""
    share, centre = torch.tensor([0.75, 0.75]), torch.tensor([[0.5, 0.5], [0.0, 0.0]])
    boxes = draw_boxes(share, centre, torch.Size((8, 12)))
    assert boxes.tolist() == [[2, 3, 6, 9], [0, 0, 2, 3]]
    assert paste(torch.zeros(2, 1, 8, 12), torch.ones(2, 1, 8, 12), boxes).share.tolist() == [0.75, 0.9375]


def test_the_share_of_a_pasted_crop_is_what_is_seen_of_it() -> None:
    first, second = torch.zeros(50, 1, HEIGHT, WIDTH), torch.ones(50, 1, HEIGHT, WIDTH)
    found = mixed(first, second, *draws(50))
    torch.testing.assert_close(found.share.float(), 1.0 - found.images.mean((1, 2, 3)))
    assert found.share.unique().numel() > 10


def test_a_crop_mixed_with_itself_stays_what_it_is() -> None:
    first, _ = crops()
    torch.testing.assert_close(mixed(first, first, *draws()).images, first)


def test_a_box_takes_pixels_as_they_are() -> None:
    first, second = crops()
    images = mixed(first, second, *draws()).images
    assert bool(((images == first) | (images == second)).all())


def test_a_sample_is_mixed_alike_in_any_batch() -> None:
    tensors = (*crops(), *draws())
    whole = mixed(*tensors)
    parts = [mixed(*pieces) for pieces in zip(*(tensor.split(3) for tensor in tensors), strict=True)]
    assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
    assert torch.equal(whole.share, torch.cat([part.share for part in parts]))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_whole_share_is_one_crop_alone(share: float) -> None:
    first, second = crops()
    found = mixed(first, second, torch.full((7,), share), torch.full((7, 2), 0.5))
    assert torch.equal(found.images, first if share else second)
    assert found.share.tolist() == [share] * 7


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_images_keep_their_dtype(dtype: torch.dtype) -> None:
    first, second = ((255 * side).to(dtype) for side in crops())
    assert mixed(first, second, *draws()).images.dtype == dtype
