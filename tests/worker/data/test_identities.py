"""Classes of images that are compared: by name over all files, whole ones held out, those that are trained on first."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worker.data.batches import whole_split
from worker.data.formats.columns import Samples
from worker.data.identities import hold_out_classes, identities, renumbered, unseen_count
from worker.data.task_data import Halves, Targets
from worker.errors import UserError

IMAGES = np.zeros((4, 1, 2, 2), np.uint8)


def file(labels: object, names: list[str] | None = None) -> Samples:
    return Samples(IMAGES, labels, names)  # type: ignore[arg-type]


def halves(train: list[int], evaluation: list[int], names: list[str] | None = None) -> Halves:
    batches = [whole_split({"images": torch.zeros(len(each), 1)}, torch.tensor(each)) for each in (train, evaluation)]
    return renumbered(batches[0], batches[1], Targets({"data.train": batches[0].targets}, names=names))


def test_classes_are_the_same_by_name_in_all_files() -> None:
    files = {"data.train": file(["b", "a", "a", "c"]), "data.eval": file(np.array([0, 1, 1, 0]), ["d", "a"])}
    found = identities(files)
    assert found.names == ["a", "b", "c", "d"]
    assert found.by_file["data.train"].tolist() == [1, 0, 0, 2]
    assert found.by_file["data.eval"].tolist() == [3, 0, 0, 3]


def test_numbers_without_names_are_in_their_order() -> None:
    found = identities({"data.train": file(np.array([11, 2, 2, 7]))})
    assert found.names == ["2", "7", "11"]
    assert found.by_file["data.train"].tolist() == [2, 0, 0, 1]


def test_a_negative_number_is_refused_by_its_place() -> None:
    with pytest.raises(UserError, match=r"label -100 at index 2 of data\.eval; accepted: numbers from 0") as caught:
        identities({"data.train": file(np.array([0, 1, 0, 1])), "data.eval": file(np.array([0, 1, -100, 1]))})
    assert caught.value.param == "data.eval"


def test_whole_classes_are_held_out_as_the_seed_draws() -> None:
    labels = torch.randint(9, (200,), generator=torch.Generator().manual_seed(0))
    drawn = [hold_out_classes(labels, 4, seed) for seed in (1, 1, 2)]
    kept, held = drawn[0]
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(200))
    assert set(labels[kept].tolist()).isdisjoint(labels[held].tolist())
    assert len(labels[held].unique()) == 4
    assert torch.equal(held, drawn[1][1])
    assert not torch.equal(held, drawn[2][1])


@pytest.mark.parametrize(
    ("classes", "wanted", "share", "expected"),
    [(10, 5, 0.2, 5), (10, None, 0.2, 2), (10, None, 0.5, 5), (4, None, 0.1, 2), (10, None, 0.99, 8), (4, 2, 0.2, 2)],
)
def test_both_halves_keep_two_classes(classes: int, wanted: int | None, share: float, expected: int) -> None:
    assert unseen_count(classes, wanted, share) == expected


@pytest.mark.parametrize(
    ("classes", "wanted", "told"),
    [
        (10, 9, r"data\.unseen_classes is 9 of 10, and training needs 2; accepted: 2 to 8"),
        (3, None, "data.train has 3 classes, .* accepted: 4 or more, or data.eval"),
    ],
)
def test_too_few_classes_are_refused(classes: int, wanted: int | None, told: str) -> None:
    with pytest.raises(UserError, match=told):
        unseen_count(classes, wanted, 0.2)


def test_classes_that_are_trained_on_have_the_lowest_numbers() -> None:
    found = halves([7, 3, 7, 3], [5, 3, 5, 8], [str(number) for number in range(9)])
    assert found.train.targets.tolist() == [1, 0, 1, 0]
    assert found.eval.targets.tolist() == [2, 0, 2, 3]
    assert found.figures["classes"] == {
        **{"trained": 2, "evaluated": 3, "unseen": 2},
        **{"trained_names": ["3", "7"], "evaluated_names": ["3", "5", "8"]},
    }


@pytest.mark.parametrize(
    ("train", "evaluation", "told"),
    [
        ([1, 1], [0, 0, 2], "the samples of data.train are of one class; accepted: 2 classes or more"),
        ([0, 1], [2, 2], "are of one class"),
        ([0, 1], [2, 3], "no class to evaluate on has two images"),
    ],
)
def test_what_can_t_be_compared_is_refused(train: list[int], evaluation: list[int], told: str) -> None:
    with pytest.raises(UserError, match=told):
        halves(train, evaluation)
