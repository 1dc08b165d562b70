"""Values at given ranks are those of a sort, however they come in parts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.data.randomness import generator
from worker.selection import ranked

SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-42, -1e-42, 3e38, -3e38, torch.inf, -torch.inf]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 99), part=st.integers(1, 80), rounded=st.booleans())
@settings(max_examples=25, deadline=None)
def test_they_are_those_of_a_sort(dtype: torch.dtype, seed: int, part: int, rounded: bool) -> None:
    drawn = torch.randn(60, generator=generator(seed, "values"), dtype=dtype)
    values = torch.cat((drawn.round() if rounded else drawn, torch.tensor(SPECIAL, dtype=dtype)))
    values = values[torch.randperm(len(values), generator=generator(seed, "order"))]
    ranks = torch.tensor([0, 17, 17, 35, len(values) - 1])
    found = ranked(lambda: torch.split(values, part), ranks, dtype)
    assert found.dtype == dtype
    assert torch.equal(found, values.sort().values[ranks])


def test_neighbouring_numbers_are_told_apart() -> None:
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype)
        values = torch.cat((one.nextafter(2 * one), one, one.nextafter(0 * one)))
        assert torch.equal(ranked(lambda v=values: [v], torch.arange(3), dtype), values.flip(0))
