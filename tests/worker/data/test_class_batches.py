"""Batches of P classes with K samples each."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worker.data.batches import Batches, whole_split
from worker.data.class_batches import distinct_order, grouped_order, rank_order, repeated_share
from worker.data.randomness import generator


def draw(sizes: list[int], batch: int, per_class: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Labels of classes of these sizes, and an order of them."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=generator(seed, "labels"))]
    return labels, grouped_order(labels, batch, per_class, generator(seed, "order", 0))


@given(
    sizes=st.lists(st.integers(1, 12), min_size=3, max_size=9),
    per_class=st.integers(2, 4),
    together=st.integers(2, 3),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_a_batch_has_so_many_samples_of_so_many_classes(
    sizes: list[int], per_class: int, together: int, seed: int
) -> None:
    labels, order = draw(sizes, together * per_class, per_class, seed)
    assert len(order) == len(labels)
    *whole, last = order.split(together * per_class)
    for batch in [*whole, *([last] if len(last) == together * per_class else [])]:
        classes, counts = torch.unique(labels[batch], return_counts=True)
        assert counts.tolist() == [per_class] * together
        for number in classes.tolist():
            members = batch[labels[batch] == number]
            assert len(torch.unique(members)) == min(per_class, sizes[number])


def test_classes_and_samples_take_turns() -> None:
    sizes = [40, 8, 8, 8]
    labels, order = draw(sizes, 8, 4)
    counts = torch.bincount(labels[order])
    assert counts.tolist() == [16, 16, 16, 16]
    assert torch.bincount(order, minlength=64)[labels == 0].max() == 1
    assert torch.bincount(order, minlength=64)[labels == 1].tolist() == [2] * 8


def test_an_epoch_depends_on_seed_and_number_alone_and_processes_share_it() -> None:
    labels = torch.arange(60) % 6
    samples = whole_split({"images": torch.arange(60).view(-1, 1)}, labels)

    def batches(share: slice = slice(None)) -> Batches:
        def order(random: torch.Generator) -> Tensor:
            return grouped_order(labels, 12, 4, random)

        return Batches(samples, 12, 5, None, lambda rows: rows[share], order)

    later = batches()
    for step in (7, 3, 0, 9):
        found = batches().at(step)
        assert torch.equal(found.index, later.at(step).index)
        halves = [batches(part).at(step).index for part in (slice(0, None, 2), slice(1, None, 2))]
        assert torch.equal(torch.stack(halves, 1).flatten(), found.index)
    assert not torch.equal(later.at(0).index, later.at(5).index)


def of_batches(labels: Tensor, order: Tensor, size: int) -> list[list[int]]:
    return [part.tolist() for part in torch.split(labels[order], size)]


def test_the_order_by_ranks_takes_one_of_every_class_in_turn() -> None:
    labels = torch.tensor([2, 0, 0, 1, 2, 2])
    assert rank_order(labels).tolist() == [1, 3, 0, 2, 4, 5]


@pytest.mark.parametrize("size", [1, 4, 6])
def test_no_batch_has_two_of_a_class_while_enough_classes_are_left(size: int) -> None:
    labels = torch.arange(60) % 6
    order = distinct_order(labels, size, generator(0, "order"))
    assert sorted(order.tolist()) == list(range(60))
    assert all(len(set(part)) == len(part) for part in of_batches(labels, order, size))
    assert repeated_share(labels, order, size) == 0.0


def test_batches_repeat_a_class_only_if_they_have_one_of_every_class_that_is_left() -> None:
    sizes = torch.tensor([40, 12, 5, 20, 1, 9])
    labels, size = torch.repeat_interleave(torch.arange(6), sizes), 4
    order = distinct_order(labels, size, generator(1, "order"))
    assert sorted(order.tolist()) == list(range(len(labels)))
    left, repeats = sizes.tolist(), 0
    for part in of_batches(labels, order, size):
        there = sum(count > 0 for count in left)
        assert len(set(part)) == min(there, len(part))
        repeats += len(part) - len(set(part))
        for label in part:
            left[label] -= 1
    assert repeats > 0
    assert repeated_share(labels, order, size) == repeats / len(labels)


def test_every_epoch_has_another_order_and_every_seed_its_own() -> None:
    labels = torch.arange(40) % 8
    orders = [distinct_order(labels, 8, generator(seed, "order", epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert torch.equal(orders[0], distinct_order(labels, 8, generator(0, "order", 0)))


def test_one_class_is_any_order_and_more_places_than_samples_are_one_batch() -> None:
    order = distinct_order(torch.zeros(7, dtype=torch.int64), 3, generator(0, "order"))
    assert sorted(order.tolist()) == list(range(7))
    assert sorted(distinct_order(torch.arange(5), 99, generator(0, "order")).tolist()) == list(range(5))
