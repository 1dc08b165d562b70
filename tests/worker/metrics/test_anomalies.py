"""Scores of images and pixels against plain definitions."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from worker.metrics import anomalies as module
from worker.metrics.anomalies import auroc, per_region_overlap, some_images


def regions(mask: Tensor) -> list[Tensor]:
    """Parts of a mask (H, W) bool that hang together, corners included, each as a mask."""
    left, found = mask.clone(), []
    while bool(left.any()):
        part = torch.zeros_like(left)
        part[tuple(left.nonzero()[0])] = True
        while True:
            grown = torch.nn.functional.max_pool2d(part[None].float(), 3, 1, 1)[0].bool() & mask
            if torch.equal(grown, part):
                break
            part = grown
        found.append(part)
        left &= ~part
    return found


def plain_overlap(maps: Tensor, masks: Tensor, limit: float) -> float:
    """Overlap and rate at every threshold, one after the other, and the area by the trapezoidal rule."""
    points = [(0.0, 0.0)]
    for threshold in maps.unique().flip(0).tolist():
        flagged = maps >= threshold
        shares = [
            float((flagged[image] & region).sum()) / float(region.sum())
            for image, mask in enumerate(masks)
            for region in regions(mask)
        ]
        points.append((float((flagged & ~masks).sum()) / float((~masks).sum()), sum(shares) / len(shares)))
    area = 0.0
    for (x, y), (next_x, next_y) in pairwise(points):
        if next_x > limit:
            cut = y + (next_y - y) * (limit - x) / (next_x - x)
            return (area + (limit - x) * (y + cut) / 2) / limit
        area += (next_x - x) * (y + next_y) / 2
    raise AssertionError("the last rate is 1")


def draw(seed: int) -> tuple[Tensor, Tensor]:
    """Maps (3, 6, 7), with ties, that are higher where masks are set; one image has none."""
    random = torch.Generator().manual_seed(seed)
    masks = torch.rand(3, 6, 7, generator=random) < 0.25
    masks[2] = False
    return (torch.rand(3, 6, 7, generator=random) + 0.4 * masks).mul(12).round() / 12, masks


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limit", [0.05, 0.3, 0.9])
def test_the_overlap_of_regions_is_that_of_its_definition(seed: int, limit: float) -> None:
    maps, masks = draw(seed)
    assert per_region_overlap(maps, masks, limit) == pytest.approx(plain_overlap(maps, masks, limit), abs=1e-12)


def test_small_regions_count_as_much_as_large_ones() -> None:
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[0, 0, 0] = masks[0, 4:, 4:] = True
    large, small = (torch.zeros(1, 8, 8) for _ in range(2))
    large[0, 4:, 4:] = small[0, 0, 0] = 1.0
    for maps in (large, small):  # the other region is found with all normal pixels alone
        assert per_region_overlap(maps, masks) == pytest.approx(0.5 + 0.3 / 2 * 0.5, abs=1e-12)
    assert per_region_overlap(torch.maximum(large, small), masks) == pytest.approx(1.0)
    assert auroc(large, masks) > auroc(small, masks)


def test_corners_join_a_region() -> None:
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, 0, 0] = masks[0, 1, 1] = True
    shares = torch.from_numpy(module._region_shares(masks.numpy()))
    assert torch.equal(shares[masks], torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order() -> None:
    random = torch.Generator().manual_seed(0)
    scores, anomalous = torch.rand(40, generator=random).mul(9).round(), torch.rand(40, generator=random) < 0.4
    difference = scores[anomalous].unsqueeze(1) - scores[~anomalous]
    pairs = (difference > 0).double() + 0.5 * (difference == 0)
    assert auroc(scores, anomalous) == pytest.approx(float(pairs.mean()), abs=1e-12)


def test_of_too_many_pixels_some_images_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, masks = torch.arange(9.0).view(9, 1, 1), torch.zeros(9, 2, 2, dtype=torch.bool)
    assert some_images(maps, masks)[0].flatten().tolist() == list(range(9))
    monkeypatch.setattr(module, "MOST_PIXELS", 15)
    chosen, theirs = some_images(maps, masks)
    assert (chosen.flatten().tolist(), len(theirs)) == ([0.0, 4.0, 8.0], 3)
