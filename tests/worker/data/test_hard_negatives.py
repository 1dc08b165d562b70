"""Batches of classes that are close to each other in a pool."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worker.data import hard_negatives
from worker.data.hard_negatives import NO_CLASS, NearClasses, confusion, pool_of


def circle(angles: list[float]) -> Tensor:
    """Vectors (M, 2) at these angles in degrees, of any length."""
    radians = torch.tensor(angles).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], 1) * torch.arange(1, len(angles) + 1).unsqueeze(1)


def test_nearest_classes_are_those_of_the_nearest_mean_directions() -> None:
    vectors = circle([0, 20, 40, 60, 100, 100, 200])
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 4])
    found = confusion(vectors, labels, classes=5, width=3)
    assert found.nearest.tolist() == [
        [1, 2, 4],
        [0, 2, 4],
        [1, 0, 4],
        [NO_CLASS] * 3,
        [2, 1, 0],
    ]
    nearest = torch.tensor([40.0, 20.0, 20.0, 40.0, 40.0, 40.0, 100.0]).deg2rad().cos()
    torch.testing.assert_close(found.hardest, nearest.mean())


def test_figures_do_not_depend_on_how_many_cosines_are_computed_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 7
    whole = confusion(vectors, labels, 7, 4)
    monkeypatch.setattr(hard_negatives, "AT_ONCE", 3 * 40)
    parts = confusion(vectors, labels, 7, 4)
    assert torch.equal(parts.nearest, whole.nearest)
    torch.testing.assert_close(parts.hardest, whole.hardest)
    cosines = F.normalize(vectors, dim=-1) @ F.normalize(vectors, dim=-1).T
    cosines[labels.unsqueeze(1) == labels] = -1.0
    torch.testing.assert_close(whole.hardest, cosines.amax(1).mean())


def test_a_pool_has_as_many_images_of_each_class_as_possible_and_others_at_other_steps() -> None:
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([50, 3, 20, 10]))
    pools = [pool_of(labels, 15, 3, step) for step in (0, 10)]
    for pool in pools:
        assert len(torch.unique(pool)) == 15
        assert labels[pool].bincount().tolist() == [4, 3, 4, 4]
    assert set(pools[0].tolist()) != set(pools[1].tolist())
    assert torch.equal(pools[1], pool_of(labels, 15, 3, 10))
    assert sorted(pool_of(labels, 999, 3, 0).tolist()) == list(range(83))


def batches(together: int, neighbours: int | None = None, sizes: int = 6) -> NearClasses:
    return NearClasses(torch.arange(10 * sizes) % 10, together, 3, neighbours, 5)


RING = torch.tensor([[(number + 1) % 10, (number - 1) % 10, (number + 2) % 10] for number in range(10)])
"""Of each of ten classes on a ring the nearest three."""


def test_a_batch_has_one_anchor_class_and_the_nearest_ones() -> None:
    drawn = batches(4)
    for step in range(30):
        chosen = drawn.classes_at(step, RING)
        anchor, *rest = chosen.classes
        assert rest == RING[anchor].tolist()
        assert chosen.from_pool == 3


def test_anchors_take_turns_and_each_brings_its_neighbours() -> None:
    drawn = batches(4, neighbours=1)
    anchors = []
    for step in range(10):
        classes, from_pool = drawn.classes_at(step, RING)
        assert len(set(classes)) == 4
        assert from_pool <= 2
        anchors += [classes[0], classes[2]] if from_pool == 2 else []
        assert {(classes[0] + 1) % 10, (classes[0] - 1) % 10} & set(classes[1:])
    assert len(set(anchors)) > 5


def test_every_class_is_an_anchor_as_often_as_any_other() -> None:
    drawn = batches(3)
    anchors = [drawn.classes_at(step, RING).classes[0] for step in range(40)]
    assert sorted(anchors) == sorted(4 * list(range(10)))
    assert anchors[:10] != anchors[10:20]


def test_classes_that_the_pool_lacks_are_drawn_at_random() -> None:
    drawn, unknown = batches(4), torch.full((10, 3), NO_CLASS)
    found = [drawn.classes_at(step, unknown) for step in range(20)]
    assert all(len(set(chosen.classes)) == 4 and chosen.from_pool == 0 for chosen in found)
    assert len({tuple(sorted(chosen.classes)) for chosen in found}) > 10
    partly = drawn.classes_at(0, torch.where(RING[:, :1] == RING, RING, NO_CLASS))
    assert partly.from_pool == 1


@pytest.mark.parametrize(("size", "each"), [(6, 3), (2, 2)])
def test_the_samples_of_a_class_differ_if_there_are_as_many(size: int, each: int) -> None:
    drawn = batches(4, sizes=size)
    rows = drawn.samples_of(7, [2, 5, 1, 9], 12)
    assert (rows % 10).tolist() == [2, 2, 2, 5, 5, 5, 1, 1, 1, 9, 9, 9]
    assert all(len(torch.unique(part)) == each for part in rows.split(3))
    assert torch.equal(drawn.samples_of(7, [2, 5, 1, 9], 5), rows[:5])
    assert not torch.equal(drawn.samples_of(8, [2, 5, 1, 9], 12), rows)
