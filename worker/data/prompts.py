"""Prompts for generation during training: beginnings of packed texts, or the part of a chat before an answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from worker.data.archive import NDArray
from worker.data.batches import Batch, whole_split
from worker.data.documents import Document
from worker.tensors import IGNORED

TOGETHER = 4096
"""Sequences that are read at a time."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """Texts to be continued by generation."""

    samples: Batch
    """Token ids (N, P) of one input key, int64, padded at the end; targets are their lengths (N,) int64, at least 1."""
    ends: tuple[int, ...]
    """Token ids that end a generated text."""
    left_out: int = 0
    """Number of prompts that are too long for the new tokens."""

    @property
    def tokens(self) -> Tensor:
        """Token ids (N, P) int64."""
        return next(iter(self.samples.inputs.values()))

    def to(self, device: torch.device) -> Prompts:
        """A copy on `device`."""
        return replace(self, samples=self.samples.to(device))


def beginnings(sequences: Batch, input_key: str, most: int, end: int) -> Prompts:
    """The first `most` tokens of packed sequences (N, S); fewer if a sequence ends in padding before."""
    tokens, lengths = zip(*(_begun(part, input_key, most) for part in sequences.parts(TOGETHER)), strict=True)
    return Prompts(whole_split({input_key: torch.cat(tokens)}, torch.cat(lengths)), (end,))


def _begun(sequences: Batch, input_key: str, most: int) -> tuple[Tensor, Tensor]:
    places = torch.arange(1, sequences.targets.shape[1] + 1)
    known = torch.where(sequences.targets != IGNORED, places, 0).amax(1)
    chosen = known.nonzero().squeeze(1)
    return sequences.inputs[input_key][chosen, :most], known[chosen].clamp(max=most)


def questions(documents: Iterable[Document], input_key: str, most: int, fill: int, ends: Sequence[int]) -> Prompts:
    """The tokens before each answer of chats, if they are at most `most`."""
    found = [prompt for document in documents for prompt in _before_answers(document)]
    fitting = [prompt for prompt in found if len(prompt) <= most]
    lengths = torch.tensor([len(prompt) for prompt in fitting], dtype=torch.int64)
    tokens = torch.full((len(fitting), max(map(len, fitting), default=0)), fill)
    for row, prompt in enumerate(fitting):
        tokens[row, : len(prompt)] = torch.from_numpy(prompt)
    return Prompts(whole_split({input_key: tokens}, lengths), tuple(ends), len(found) - len(fitting))


def _before_answers(document: Document) -> Iterator[NDArray]:
    begins = np.flatnonzero(document.counted[1:] & ~document.counted[:-1]) + 1
    return (document.ids[:begin] for begin in begins)
