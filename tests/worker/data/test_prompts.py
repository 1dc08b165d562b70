"""Prompts for generation: the beginnings of packed texts, or the messages before each answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from worker.data.batches import whole_split
from worker.data.documents import Document
from worker.data.packing import open_packed, packing
from worker.data.prompts import beginnings, questions

END, VIEW = 2, "tokens"


def document(ids: list[int], counted: list[int]) -> Document:
    return Document(np.array(ids, np.int64), np.isin(np.arange(len(ids)), counted))


def test_of_texts_they_are_the_first_tokens_of_every_sequence(tmp_path: Path) -> None:
    with packing(tmp_path / "file", 10, 6, END) as packer:
        packer.add(document([5, 6, 7, 8, 9, END], [1, 2, 3, 4, 5]))
        packer.add(document([5, 6, END], [1, 2]))
    prompts = beginnings(open_packed(tmp_path / "file", 10, 6, VIEW), VIEW, 3, END)
    assert prompts.tokens.tolist() == [[5, 6, 7], [5, 6, END]]
    assert prompts.samples.targets.tolist() == [3, 2]  # the end that is behind was a target, and no token of this one
    assert prompts.ends == (END,)


def test_a_sequence_without_a_target_is_no_prompt() -> None:
    sequences = whole_split({VIEW: torch.tensor([[4, 5], [END, END]])}, torch.tensor([[5, -100], [-100, -100]]))
    assert beginnings(sequences, VIEW, 2, END).tokens.tolist() == [[4, 5]]


def test_of_chats_they_are_all_that_precedes_each_answer() -> None:
    talk = document([1, 4, 5, 6, 7, 8, 9, 3, END], [2, 3, 6, 7])
    prompts = questions([talk, document([1, 5, END], [1])], VIEW, 6, END, (END, 3))
    assert prompts.tokens.tolist() == [[1, 4, END, END, END, END], [1, 4, 5, 6, 7, 8], [1, END, END, END, END, END]]
    assert prompts.samples.targets.tolist() == [2, 6, 1]
    assert (prompts.ends, prompts.left_out) == ((END, 3), 0)
    fewer = questions([talk], VIEW, 5, END, (END,))
    assert (fewer.tokens.tolist(), fewer.left_out) == ([[1, 4]], 1)
