"""Outputs of models as they go from a forward pass to the losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses.taps import Tap


class LikeliestTokens(NamedTuple):
    """The K largest logits at every token; N sequences of S tokens."""

    indices: Tensor
    """(N, S, K) integers."""
    values: Tensor
    """(N, S, K), floating."""
    rest: Tensor
    """Logarithm of the mass of all others (N, S) float32; -inf: there are none."""
    vocabulary: int
    """Number of all of them."""

    def logits(self, rows: Tensor | slice) -> Tensor:
        """Logits (n, V) float32 of the tokens at `rows` (n,) int64, counted over all sequences: what isn't kept gets
        equal parts of the rest."""
        values, rest = self.values.flatten(0, 1)[rows].float(), self.rest.flatten()[rows].unsqueeze(1)
        each = rest - math.log(max(self.vocabulary - values.shape[1], 1))
        return each.repeat(1, self.vocabulary).scatter_(1, self.indices.flatten(0, 1)[rows].long(), values)


class HiddenStates(NamedTuple):
    """Inputs of a decoder's last layer, and that layer: small where logits of every token would be large; N sequences
    of S tokens, H hidden numbers, V tokens of the vocabulary."""

    hidden: Tensor
    """(N, S, H), floating."""
    weight: Tensor
    """(V, H), in the same dtype."""
    bias: Tensor | None = None
    """(V,), where the layer has one."""

    @property
    def rows(self) -> Tensor:
        """The hidden states token by token (N S, H)."""
        return self.hidden.flatten(0, 1)

    def logits(self, rows: Tensor | slice) -> Tensor:
        """Logits (n, V) of the tokens at `rows` (n,) int64, counted over all sequences."""
        return F.linear(self.rows[rows], self.weight, self.bias)


Answer = Tensor | HiddenStates | LikeliestTokens


@dataclass(frozen=True, eq=False)
class TeacherSignal:
    """Outputs of a teacher for a batch, without gradient."""

    answer: Answer
    """Dense logits or numbers (B, C); of a language model the inputs of its last layer, or the largest logits."""
    head: Tensor | None = None
    """Weight (C, D) of the last linear layer that gives a number per class; the same for every batch."""
    features: Mapping[Tap, Tensor] = field(default_factory=dict)
    """Activations (B, ...)."""
    tokens: Tensor | None = None
    """(B, S) bool: which of the teacher's tokens aren't padding; none where it reads no text."""
    rows: Tensor | None = None
    """(B, S) int64: for every token of the student's the place in the teacher's sequence that has read the same text,
    -1 where there is none; none: the tokens are the same ones."""

    @property
    def logits(self) -> Tensor:
        """The answer for whole samples (B, C). Raises TypeError for a language model's."""
        if not isinstance(self.answer, Tensor):
            raise TypeError("the logits of a language model are made where they are used, some rows at a time")
        return self.answer
