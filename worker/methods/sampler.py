"""Has a model write the texts that training learns from: batches of tokens with the targets that they are."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.methods.generation import Generation
from worker.data.batches import Batch, whole_split
from worker.data.prompts import Prompts
from worker.data.randomness import derive_seed
from worker.students.decoding import Manner, Written, write
from worker.students.measure import Reading
from worker.students.model import Model
from worker.tensors import IGNORED

TOGETHER = 64
"""Texts that are written at a time; another number would draw other ones."""


class Text(NamedTuple):
    """What was written on some prompts, and what it took."""

    written: Written
    flops: int


class Author:
    """Writes on prompts as a job wants it: a pure function of the model's weights, the prompts, seed and purpose."""

    def __init__(self, wanted: Generation, prompts: Prompts, vocabulary: int, seed: int, *, autocast: bool) -> None:
        device = prompts.tokens.device
        self._most, self._seed, self._autocast = wanted.new_tokens, seed, autocast
        self._manner = Manner(wanted.temperature, wanted.top_k, vocabulary)
        self._ends = torch.tensor(prompts.ends, device=device)

    def write(self, model: Model, cost: Reading, prompts: Batch, *purpose: str | int) -> Text:
        """Texts on all `prompts` (token ids in its only input key, lengths as its targets), without dropout."""
        [tokens], was_training = prompts.inputs.values(), model.training
        model.eval()
        parts = [torch.split(side, TOGETHER) for side in (tokens, prompts.targets)]
        texts = [
            self._together(model, cost, *part, *purpose, number) for number, part in enumerate(zip(*parts, strict=True))
        ]
        model.train(was_training)
        longest = max(text.written.tokens.shape[1] for text in texts)
        whole = [_widened(text.written, longest) for text in texts]
        sides = (torch.cat(side) for side in zip(*whole, strict=True))
        return Text(Written(*sides), sum(text.flops for text in texts))

    def _together(self, model: Model, cost: Reading, tokens: Tensor, lengths: Tensor, *purpose: str | int) -> Text:
        draw = torch.Generator(tokens.device).manual_seed(derive_seed(self._seed, "writing", *purpose))
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self._autocast):
            written = write(model, tokens, lengths, self._most, self._manner, self._ends, draw)
        return Text(written, len(tokens) * cost.writing(int(lengths.min()), written.tokens.shape[1]))


def _widened(written: Written, length: int) -> Written:
    missing = length - written.tokens.shape[1]
    return Written(F.pad(written.tokens, (0, missing)), F.pad(written.own, (0, missing)))


def as_batch(written: Written, input_key: str) -> Batch:
    """To learn from: the target of a token is the one behind it where the model wrote that, all others are ignored."""
    targets = torch.where(written.own, written.tokens, IGNORED)[:, 1:]
    return whole_split({input_key: written.tokens[:, :-1]}, targets)
