"""Two crops of one image: what is pasted, what is blended, and by whose numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worker.data.selfmix import blend, draw_boxes, mix_labels, paste, self_mix

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


def test_a_box_is_pasted_where_it_says() -> None:
    mixed = paste(BLACK, WHITE, torch.tensor([[1, 2, 4, 7]]))
    expected = torch.zeros(HEIGHT, WIDTH)
    expected[1:4, 2:7] = 1.0
    assert torch.equal(mixed.images[0, 1], expected)
    assert mixed.share.tolist() == [pytest.approx(1.0 - 15 / 60)]


def test_boxes_have_their_share_of_the_area_and_stay_inside() -> None:
    """A quarter of the area is half of each side; around a corner a quarter of that is left."""
    share, centre = torch.tensor([0.75, 0.75]), torch.tensor([[0.5, 0.5], [0.0, 0.0]])
    boxes = draw_boxes(share, centre, torch.Size((8, 12)))
    assert boxes.tolist() == [[2, 3, 6, 9], [0, 0, 2, 3]]
    assert paste(torch.zeros(2, 1, 8, 12), torch.ones(2, 1, 8, 12), boxes).share.tolist() == [0.75, 0.9375]


def test_the_share_of_a_pasted_crop_is_what_is_seen_of_it() -> None:
    first, second = torch.zeros(50, 1, HEIGHT, WIDTH), torch.ones(50, 1, HEIGHT, WIDTH)
    mixed = self_mix(first, second, *draws(50))
    torch.testing.assert_close(mixed.share.float(), 1.0 - mixed.images.mean((1, 2, 3)))
    assert mixed.share.unique().numel() > 10


def test_blending_is_linear() -> None:
    mixed = blend(BLACK, WHITE, torch.tensor([0.3]))
    torch.testing.assert_close(mixed.images, 0.7 * WHITE)


def test_bytes_are_blended_to_the_nearest_byte() -> None:
    first, second = torch.full((2, 1, 1, 1), 10, dtype=torch.uint8), torch.full((2, 1, 1, 1), 255, dtype=torch.uint8)
    mixed = blend(first, second, torch.tensor([0.5, 0.8]))
    assert mixed.images.dtype == torch.uint8
    assert mixed.images.flatten().tolist() == [132, 59]  # 132.5 goes to the even one


@pytest.mark.parametrize("boxed", [False, True])
def test_a_crop_mixed_with_itself_stays_what_it_is(boxed: bool) -> None:
    first, _ = crops()
    share, centre = draws()
    torch.testing.assert_close(self_mix(first, first, share, centre if boxed else None).images, first)


def test_a_box_takes_pixels_as_they_are_and_blending_takes_some_of_both() -> None:
    first, second = crops()
    share, centre = draws()
    for images, whole in (
        (self_mix(first, second, share, centre).images, True),
        (blend(*crops(), share).images, False),
    ):
        from_either = (images == first) | (images == second)
        assert bool(from_either.all()) == whole


@pytest.mark.parametrize("boxed", [False, True])
def test_a_sample_is_mixed_alike_in_any_batch(boxed: bool) -> None:
    tensors = (*crops(), *draws()) if boxed else (*crops(), draws()[0])
    whole = self_mix(*tensors)
    parts = [self_mix(*pieces) for pieces in zip(*(tensor.split(3) for tensor in tensors), strict=True)]
    assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
    assert torch.equal(whole.share, torch.cat([part.share for part in parts]))


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_whole_share_is_one_crop_alone(share: float, boxed: bool) -> None:
    first, second = crops()
    centre = torch.full((7, 2), 0.5) if boxed else None
    mixed = self_mix(first, second, torch.full((7,), share), centre)
    assert torch.equal(mixed.images, first if share else second)
    assert mixed.share.tolist() == [share] * 7


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_images_keep_their_dtype(dtype: torch.dtype) -> None:
    first, second = ((255 * side).to(dtype) for side in crops())
    share, centre = draws()
    assert self_mix(first, second, share).images.dtype == dtype
    assert self_mix(first, second, share, centre).images.dtype == dtype


def test_labels_mix_by_the_share() -> None:
    first, second = torch.tensor([[1.0, 0.0, 0.0]] * 2), torch.tensor([[0.0, 0.5, 0.5]] * 2)
    found = mix_labels(first, second, torch.tensor([0.25, 1.0]))
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.375, 0.375], [1.0, 0.0, 0.0]]))
