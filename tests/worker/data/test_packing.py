"""Sequences hold every token of the documents once, and targets are the tokens behind them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worker.data.batches import Batch, Batches
from worker.data.documents import Document
from worker.data.packing import NARROW, PackedTexts, open_packed, packing
from worker.tensors import IGNORED

FILL, VIEW = 0, "tokens"
documents = st.lists(st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=9), min_size=1)


def made(rows: list[list[tuple[int, bool]]]) -> list[Document]:
    """Each ends with FILL, which is learned."""
    ended = [[*row, (FILL, True)] for row in rows]
    return [Document(np.array([i for i, _ in row], np.int64), np.array([told for _, told in row])) for row in ended]


def packed(rows: list[list[tuple[int, bool]]], length: int, folder: Path, vocabulary: int = 10) -> PackedTexts:
    with packing(folder / "file", vocabulary, length, FILL) as packer:
        for document in made(rows):
            packer.add(document)
    return open_packed(folder / "file", vocabulary, length, VIEW)


def values(split: Batch) -> tuple[Tensor, Tensor]:
    whole = split.between(0, len(split))
    return whole.inputs[VIEW], whole.targets


@settings(deadline=None)  # it writes files
@given(documents, st.integers(1, 7), st.sampled_from([10, NARROW + 1]))
def test_no_token_is_lost_or_doubled(rows: list[list[tuple[int, bool]]], length: int, vocabulary: int) -> None:
    with TemporaryDirectory() as folder:
        tokens, targets = values(packed(rows, length, Path(folder), vocabulary))
    stream = [pair for row in rows for pair in [*row, (FILL, True)]]
    assert tokens.shape == targets.shape == (max(1, -(-(len(stream) - 1) // length)), length)
    assert tokens.flatten()[: len(stream) - 1].tolist() == [i for i, _ in stream[:-1]]
    assert targets.flatten()[: len(stream) - 1].tolist() == [i if told else IGNORED for i, told in stream[1:]]
    assert tokens.flatten()[len(stream) - 1 :].eq(FILL).all()
    assert targets.flatten()[len(stream) - 1 :].eq(IGNORED).all()


def test_a_target_is_the_token_behind(tmp_path: Path) -> None:
    tokens, targets = values(packed([[(5, True), (6, True), (7, False)], [(8, True)]], 3, tmp_path))
    torch.testing.assert_close(tokens, torch.tensor([[5, 6, 7], [0, 8, 0]]))
    torch.testing.assert_close(targets, torch.tensor([[6, IGNORED, 0], [8, 0, IGNORED]]))


@pytest.mark.parametrize(("vocabulary", "size"), [(NARROW, 2), (NARROW + 1, 4)])
def test_the_largest_token_comes_back(tmp_path: Path, vocabulary: int, size: int) -> None:
    largest = vocabulary - 1
    split = packed([[(largest, True), (largest, False)]], 2, tmp_path, vocabulary)
    tokens, targets = values(split)
    assert tokens.tolist() == [[largest, largest]]
    assert targets.tolist() == [[IGNORED, FILL]]
    assert (tmp_path / "file").stat().st_size == 3 * size


def test_batches_are_those_of_the_same_sequences_in_memory(tmp_path: Path) -> None:
    rows = [[(1 + (i * j) % 9, j % 3 > 0) for j in range(i % 7)] for i in range(40)]
    split = packed(rows, 4, tmp_path)
    (tmp_path / "file").unlink()  # what is mapped stays
    held = split.between(0, len(split))
    ours, theirs = (Batches(samples, 5, seed=3) for samples in (split, held))
    assert ours.steps_per_epoch == theirs.steps_per_epoch > 2
    for step in range(2 * ours.steps_per_epoch):
        one, other = ours.at(step), theirs.at(step)
        assert one.index.tolist() == other.index.tolist()
        assert torch.equal(one.inputs[VIEW], other.inputs[VIEW])
        assert torch.equal(one.targets, other.targets)
    parts = list(split.parts(3))
    assert [len(part) for part in parts[:-1]] == [3] * (len(parts) - 1)
    assert torch.equal(torch.cat([part.targets for part in parts]), held.targets)


def test_a_split_in_a_file_has_no_values_to_be_taken_for_tokens(tmp_path: Path) -> None:
    split = packed([[(1, True)] * 9], 4, tmp_path)
    assert split.inputs[VIEW].shape == split.targets.shape == (3, 4)
    with pytest.raises(NotImplementedError):
        split.inputs[VIEW].cpu()
