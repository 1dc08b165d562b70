"""Two crops of one image: what is pasted, what is blended, and by whose numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worker.data.selfmix import DRAWS, blend, draw_boxes, mix_labels, paste, self_mix

HEIGHT, WIDTH = 6, 10
BLACK, WHITE = torch.zeros(1, 2, HEIGHT, WIDTH), torch.ones(1, 2, HEIGHT, WIDTH)


def crops(count: int = 7) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    first, second = (torch.rand(count, 3, HEIGHT, WIDTH, generator=random) for _ in range(2))
    return first, second


def uniform(count: int = 7) -> Tensor:
    return torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(1))


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
    mixed = self_mix(first, second, uniform(50), paste_share=1.0)
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


@pytest.mark.parametrize("paste_share", [0.0, 1.0])
def test_a_crop_mixed_with_itself_stays_what_it_is(paste_share: float) -> None:
    first, _ = crops()
    torch.testing.assert_close(self_mix(first, first, uniform(), paste_share).images, first)


def test_each_sample_is_pasted_or_blended_by_its_own_draw() -> None:
    first, second = crops(2)
    draws = torch.tensor([[0.4, 0.5, 0.5, 0.5], [0.6, 0.5, 0.5, 0.5]])
    mixed = self_mix(first, second, draws, paste_share=0.5)
    from_either = (mixed.images == first) | (mixed.images == second)
    assert from_either[0].all()
    assert not from_either[1].any()
    torch.testing.assert_close(mixed.images[1], (first[1] + second[1]) / 2)
    assert mixed.share[1] == 0.5


def test_a_sample_is_mixed_alike_in_any_batch() -> None:
    first, second = crops()
    whole = self_mix(first, second, uniform())
    parts = [self_mix(*pieces) for pieces in zip(*(t.split(3) for t in (first, second, uniform())), strict=True)]
    assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
    assert torch.equal(whole.share, torch.cat([part.share for part in parts]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_images_keep_their_dtype(dtype: torch.dtype) -> None:
    first, second = ((255 * side).to(dtype) for side in crops())
    assert self_mix(first, second, uniform()).images.dtype == dtype


def test_labels_mix_by_the_share() -> None:
    first, second = torch.tensor([[1.0, 0.0, 0.0]] * 2), torch.tensor([[0.0, 0.5, 0.5]] * 2)
    found = mix_labels(first, second, torch.tensor([0.25, 1.0]))
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.375, 0.375], [1.0, 0.0, 0.0]]))
