"""The order of the samples."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.data.batches import Batch, Batches, OnHost, whole_split
from worker.data.randomness import derive_seed


def samples(count: int) -> Batch:
    return whole_split({"images": torch.arange(count).view(-1, 1, 1, 1)}, torch.arange(count))


@given(count=st.integers(1, 50), size=st.integers(1, 60), seed=st.integers(0, 2**63 - 1))
def test_an_epoch_shows_every_sample_once(count: int, size: int, seed: int) -> None:
    batches = Batches(samples(count), size, seed)
    seen = torch.cat([batches.at(step).targets for step in range(batches.steps_per_epoch)])
    assert seen.sort().values.tolist() == list(range(count))


@given(count=st.integers(1, 50), size=st.integers(1, 60))
def test_the_size_of_a_batch_is_known_without_it_and_counts_all_processes(count: int, size: int) -> None:
    batches, half = Batches(samples(count), size, 0), Batches(samples(count), size, 0, share=lambda rows: rows[::2])
    for step in range(2 * batches.steps_per_epoch):
        assert batches.size_at(step) == half.size_at(step) == len(batches.at(step))


def test_images_go_with_their_labels() -> None:
    batch = Batches(samples(20), 7, 0).at(2)
    assert torch.equal(batch.inputs["images"].flatten(), batch.targets)


def test_samples_keep_their_numbers() -> None:
    batch = Batches(samples(20), 7, 0).at(1)
    assert torch.equal(batch.index, batch.targets)
    assert torch.equal(torch.cat([part.index for part in batch.split(3)]), batch.index)


def test_augmentation_gets_the_epoch_and_whole_batches() -> None:
    seen: list[tuple[int, int]] = []

    def augment(batch: Batch, epoch: int) -> Batch:
        seen.append((len(batch), epoch))
        return batch

    batches = Batches(samples(5), 3, 0, augment)
    for step in range(4):
        batches.at(step)
    assert seen == [(3, 0), (2, 0), (3, 1), (2, 1)]


def test_any_step_can_be_the_first() -> None:
    straight, jumping = Batches(samples(20), 7, 3), Batches(samples(20), 7, 3)
    expected = [straight.at(step).targets for step in range(9)]
    for step in (8, 0, 4, 7):
        assert torch.equal(jumping.at(step).targets, expected[step])


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    one, two = Batches(samples(50), 50, 1), Batches(samples(50), 50, 2)
    orders = [one.at(0), one.at(1), two.at(0)]
    assert len({tuple(order.targets.tolist()) for order in orders}) == 3


@pytest.mark.parametrize(("rows", "parts", "sizes"), [(10, 3, [4, 3, 3]), (2, 5, [1, 1]), (7, 1, [7])])
def test_a_batch_splits_into_nearly_equal_parts_none_of_them_empty(rows: int, parts: int, sizes: list[int]) -> None:
    assert [len(part) for part in samples(rows).split(parts)] == sizes


def test_a_derived_seed_depends_on_seed_and_purpose() -> None:
    seeds = {derive_seed(1), derive_seed(2), derive_seed(1, "order"), derive_seed(1, "order", 1), derive_seed(11)}
    assert len(seeds) == 5
    assert derive_seed(1, "order") == derive_seed(1, "order")
    assert all(0 <= seed < 2**63 for seed in seeds)


def large(count: int) -> Batch:
    return samples(count).settle(torch.device("cpu"), max_bytes=count * 3 * 8 - 1)


def test_samples_that_take_too_much_memory_stay_on_the_host() -> None:
    assert isinstance(large(20), OnHost)
    assert not isinstance(samples(20).settle(torch.device("cpu"), max_bytes=20 * 3 * 8), OnHost)


def test_batches_are_the_same_wherever_their_samples_lie() -> None:
    def flip(batch: Batch, epoch: int) -> Batch:
        return replace(batch, inputs={"images": -batch.inputs["images"]}, epoch=epoch)

    near, far = (Batches(split, 7, 3, flip, lambda chosen: chosen[::2]) for split in (samples(20), large(20)))
    for step in range(7):
        ours, theirs = far.at(step), near.at(step)
        assert type(ours) is Batch
        assert torch.equal(ours.inputs["images"], theirs.inputs["images"])
        assert torch.equal(ours.targets, theirs.targets)
        assert torch.equal(ours.index, theirs.index)
        assert ours.epoch == theirs.epoch


def test_pairs_stay_together_on_the_host() -> None:
    pairs = whole_split({"tokens": torch.arange(12).view(12, 1)}, torch.arange(12), rows_per_sample=2)
    far = pairs.settle(torch.device("cpu"), max_bytes=0)
    for step in range(3):
        batch, wanted = Batches(far, 2, 0).at(step), Batches(pairs, 2, 0).at(step)
        assert torch.equal(batch.inputs["tokens"], wanted.inputs["tokens"])
        assert batch.rows_per_sample == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_arrive_on_the_gpu() -> None:
    device = torch.device("cuda")
    far, near = Batches(samples(20).settle(device, max_bytes=0), 7, 3), Batches(samples(20).to(device), 7, 3)
    for step in range(7):
        ours, theirs = far.at(step), near.at(step)
        assert ours.targets.device.type == "cuda"
        assert torch.equal(ours.inputs["images"], theirs.inputs["images"])
