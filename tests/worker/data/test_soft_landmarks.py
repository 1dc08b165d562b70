"""Softening of targets: the values it keeps and the values it removes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.recipe.data.targets import SoftLandmarks
from worker.data.soft_landmarks import fit_shapes, soft_landmarks
from worker.errors import UserError

MEAN = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)


def shapes(count: int = 40) -> Tensor:
    """(N, 4) around MEAN, with variances of exactly 9, 4, 1 and 0.25 along the axes."""
    raw = torch.randn(count, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    directions, _ = torch.linalg.qr(raw - raw.mean(0))
    return MEAN + directions * torch.tensor([3.0, 2.0, 1.0, 0.5]).double() * (count - 1) ** 0.5


@pytest.mark.parametrize(("share", "count"), [(0.5, 1), (0.7, 2), (0.95, 3), (0.99, 4)])
def test_as_many_directions_are_kept_as_the_share_needs(share: float, count: int) -> None:
    """They explain 0.63, 0.91, 0.98 and all of it."""
    found = fit_shapes(shapes(), share)
    torch.testing.assert_close(found.mean, MEAN)
    torch.testing.assert_close(found.variances, torch.tensor([9.0, 4.0, 1.0, 0.25]).double()[:count])
    torch.testing.assert_close(found.directions.abs(), torch.eye(4).double()[:, :count])


def test_what_lies_outside_the_directions_is_lost_and_the_rest_kept() -> None:
    found = fit_shapes(shapes(), 0.7).soften(MEAN + torch.tensor([[1.0, -2.0, 5.0, 7.0]]).double(), clip=3.0)
    torch.testing.assert_close(found, MEAN + torch.tensor([[1.0, -2.0, 0.0, 0.0]]).double())


def test_what_is_far_off_is_clipped_in_its_own_deviations() -> None:
    far = MEAN + torch.tensor([[100.0, -100.0, 0.0, 0.0], [0.0, 5.9, 0.0, 0.0]]).double()
    found = fit_shapes(shapes(), 0.7).soften(far, clip=3.0)
    torch.testing.assert_close(found, MEAN + torch.tensor([[9.0, -6.0, 0.0, 0.0], [0.0, 5.9, 0.0, 0.0]]).double())


def test_softening_twice_is_softening_once() -> None:
    model = fit_shapes(shapes(), 0.7)
    once = model.soften(shapes(), clip=2.0)
    torch.testing.assert_close(model.soften(once, clip=2.0), once)


def test_a_smaller_share_is_further_from_the_labels() -> None:
    off = [
        float((soft_landmarks(shapes(), SoftLandmarks(variance=share)) - shapes()).square().mean())
        for share in (0.5, 0.7, 0.95, 0.99)
    ]
    assert off[0] > off[1] > off[2] > off[3]
    assert off[3] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keypoints_keep_their_shape_and_dtype(dtype: torch.dtype) -> None:
    targets = shapes().to(dtype)
    flat, points = soft_landmarks(targets, SoftLandmarks()), soft_landmarks(targets.view(-1, 2, 2), SoftLandmarks())
    assert (points.shape, points.dtype) == ((40, 2, 2), dtype)
    assert torch.equal(points.flatten(1), flat)
    assert not torch.equal(flat, targets)


def test_fewer_samples_than_numbers_still_have_directions() -> None:
    targets = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(soft_landmarks(targets, SoftLandmarks(variance=0.999)), targets, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 5])
def test_targets_that_do_not_vary_are_refused(count: int) -> None:
    with pytest.raises(UserError, match="can't be softened"):
        soft_landmarks(torch.ones(count, 4), SoftLandmarks())
