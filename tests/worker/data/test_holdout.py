"""The stratified hold-out."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.data.holdout import hold_out


@given(
    labels=st.lists(st.integers(0, 5), min_size=2, max_size=80),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_sample_is_on_one_side_and_classes_keep_their_shares(
    labels: list[int], fraction: float, seed: int
) -> None:
    given_labels = torch.tensor(labels)
    count = min(max(round(fraction * len(labels)), 1), len(labels) - 1)
    kept, held = hold_out(given_labels, count, seed)
    assert len(held) == count
    assert torch.cat([kept, held]).sort().values.tolist() == list(range(len(labels)))
    sizes, found = given_labels.bincount(), given_labels[held].bincount(minlength=int(given_labels.max()) + 1)
    assert bool(((found - sizes * count / len(labels)).abs() < 1).all())


def test_the_seed_decides_who_is_held_out() -> None:
    labels = torch.arange(200) % 4
    first, again, other = (hold_out(labels, 40, seed)[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
