"""Metrics of predicted points, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from worker.errors import UserError
from worker.metrics.keypoints import (
    area_under_curve,
    failure_rate,
    normalised_mean_error,
    normalisers,
    sample_errors,
)

TARGETS = torch.tensor([[[0.0, 0.0], [4.0, 0.0], [4.0, 9.0]], [[1.0, 1.0], [2.0, 1.0], [2.0, 5.0]]])
"""Boxes of 4 x 9 and 1 x 4; points 1 and 2 are 9 and 4 apart."""
OFF = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
"""Distances 5, 0, 1 and none."""
ERRORS = torch.tensor([0.0, 0.05, 0.1, 0.2], dtype=torch.float64)


def test_the_box_around_the_points_is_the_default_length() -> None:
    assert normalisers(TARGETS).tolist() == [6.0, 2.0]


def test_a_pair_of_points_gives_the_length() -> None:
    assert normalisers(TARGETS, (1, 2)).tolist() == [9.0, 4.0]
    assert normalisers(TARGETS, (0, 2)).tolist() == pytest.approx([97**0.5, 17**0.5])


def test_the_error_of_a_sample_is_the_mean_distance_by_its_length() -> None:
    errors = sample_errors(TARGETS + OFF, TARGETS, normalisers(TARGETS))
    assert errors.tolist() == [2.0 / 6.0, 0.0]
    assert float(normalised_mean_error(errors)) == pytest.approx(1.0 / 6.0)


def test_points_may_come_flat_with_x_before_y() -> None:
    flat, offset = TARGETS.flatten(1), (TARGETS + OFF).flatten(1)
    expected = sample_errors(TARGETS + OFF, TARGETS, normalisers(TARGETS, (0, 1)))
    assert torch.equal(sample_errors(offset, flat, normalisers(flat, (0, 1))), expected)


def test_only_errors_above_the_threshold_fail() -> None:
    assert float(failure_rate(ERRORS)) == 0.25
    assert float(failure_rate(ERRORS, threshold=0.04)) == 0.75


def test_the_area_is_that_under_the_staircase() -> None:
    """A quarter of the samples from 0 on, half from 0.05 on, three quarters at 0.1."""
    assert float(area_under_curve(ERRORS)) == pytest.approx((0.25 * 0.05 + 0.5 * 0.05) / 0.1)
    assert float(area_under_curve(torch.zeros(3))) == 1.0
    assert float(area_under_curve(torch.ones(3))) == 0.0


def test_the_area_is_what_a_fine_grid_adds_up_to() -> None:
    errors = torch.rand(50, generator=torch.Generator().manual_seed(0)).double() * 0.15
    grid = torch.linspace(0.0, 0.1, 20_001).double()
    shares = (errors <= grid.unsqueeze(1)).double().mean(1)
    assert float(area_under_curve(errors)) == pytest.approx(float(shares.mean()), abs=1e-4)


def test_low_precision_is_taken_to_float64() -> None:
    errors = sample_errors((TARGETS + OFF).half(), TARGETS.half(), normalisers(TARGETS.half()))
    assert errors.dtype == torch.float64
    assert errors.tolist() == [2.0 / 6.0, 0.0]


@pytest.mark.parametrize(("pair", "said"), [(None, "vertical line"), ((0, 1), "points 0 and 1 are equal")])
def test_a_sample_without_a_length_is_refused_by_its_number(pair: tuple[int, int] | None, said: str) -> None:
    degenerate = TARGETS.clone()
    degenerate[1] = torch.tensor([2.0, 3.0])
    with pytest.raises(UserError, match=f"sample 1 .*{said}"):
        normalisers(degenerate, pair)


@pytest.mark.parametrize("pair", [(0, 3), (-1, 0)])
def test_a_point_that_does_not_exist_is_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="from 0 to 2"):
        normalisers(TARGETS, pair)
