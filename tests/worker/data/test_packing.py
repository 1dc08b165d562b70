"""Sequences hold every token of the documents once, and targets are the tokens behind them."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.data.documents import Document
from worker.data.packing import pack
from worker.losses.base import IGNORED

FILL = 0
documents = st.lists(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=9), min_size=1)


def made(rows: list[list[tuple[int, bool]]]) -> list[Document]:
    return [Document(np.array([i for i, _ in row], np.int64), np.array([told for _, told in row])) for row in rows]


@given(documents, st.integers(1, 7))
def test_no_token_is_lost_or_doubled(rows: list[list[tuple[int, bool]]], length: int) -> None:
    tokens, targets = pack(made(rows), length, FILL)
    stream = [pair for row in rows for pair in row]
    assert tokens.shape == targets.shape == (max(1, -(-(len(stream) - 1) // length)), length)
    assert tokens.flatten()[: len(stream) - 1].tolist() == [i for i, _ in stream[:-1]]
    assert targets.flatten()[: len(stream) - 1].tolist() == [i if told else IGNORED for i, told in stream[1:]]
    assert tokens.flatten()[len(stream) - 1 :].eq(FILL).all()
    assert targets.flatten()[len(stream) - 1 :].eq(IGNORED).all()


def test_a_target_is_the_token_behind() -> None:
    tokens, targets = pack(made([[(5, True), (6, True), (7, False)], [(8, True), (9, True)]]), 3, FILL)
    torch.testing.assert_close(tokens, torch.tensor([[5, 6, 7], [8, 0, 0]]))
    torch.testing.assert_close(targets, torch.tensor([[6, IGNORED, 8], [9, IGNORED, IGNORED]]))
