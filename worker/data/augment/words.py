"""Masks or deletes words of texts, the same ones in every input key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from app.recipe.data.augmentation import TokenDelete, TokenMask
from worker.data.augment.base import Draws, Random, Scene
from worker.data.batches import Batch
from worker.data.readers import WORDS, Special
from worker.data.tokens import NO_WORD

_GOLDEN, _FIRST, _SECOND = -7046029254386353131, -49064778989728563, -4265267296055464877
"""Odd constants of well-known mixing functions of 64 bits, as signed numbers."""
_BITS = 53


class WordStep:
    """`token-mask` or `token-delete`."""

    def __init__(self, spec: TokenMask | TokenDelete, special: Mapping[str, Special]) -> None:
        self._share, self._deletes, self._special = spec.share, isinstance(spec, TokenDelete), special

    def draw(self, scene: Scene, random: Random) -> Draws:
        """`key` (N,) int64 for each text: which words change is a function of the key and the word's number."""
        key = torch.randint(-(2**63), 2**63 - 1, (scene.count,), generator=random("key"))
        return {"key": key}

    def apply(self, batch: Batch, draws: Draws) -> Batch:
        inputs = dict(batch.inputs)
        for input_key, special in self._special.items():
            ids, words = inputs[input_key], inputs[WORDS + input_key]
            chosen = self._chosen(words, draws["key"])
            if self._deletes:
                ids, words = _without(ids, words, chosen, special.pad)
            elif special.mask is not None:
                ids = ids.masked_fill(chosen, special.mask)
            inputs |= {input_key: ids, WORDS + input_key: words}
        return replace(batch, inputs=inputs)

    def _chosen(self, words: Tensor, key: Tensor) -> Tensor:
        """Tokens (B, S) bool to change; the word of a text with the largest draw is never changed."""
        uniform = uniform_of(key[:, None], words.long()).masked_fill(words == NO_WORD, -1.0)
        return (words != NO_WORD) & (uniform < self._share) & (uniform < uniform.amax(1, keepdim=True))


def uniform_of(key: Tensor, number: Tensor) -> Tensor:
    """A pseudo-random number in [0, 1), float64, for each pair of int64, in their common shape."""
    mixed = key + (number + 1) * _GOLDEN
    for factor in (_FIRST, _SECOND):
        mixed = (mixed ^ ((mixed >> 33) & (2**31 - 1))) * factor
    uniform: Tensor = ((mixed >> (64 - _BITS)) & (2**_BITS - 1)).double() / 2**_BITS
    return uniform


def _without(ids: Tensor, words: Tensor, gone: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Tokens and words (B, S) without the `gone` ones (B, S) bool, shifted to the front; padding follows."""
    order = gone.to(torch.uint8).argsort(dim=1, stable=True)
    empty = gone.gather(1, order)
    return ids.gather(1, order).masked_fill(empty, pad), words.gather(1, order).masked_fill(empty, NO_WORD)
