"""Outputs of models, from the forward pass to the losses."""

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
    """Tokens (N, S, K), integers."""
    values: Tensor
    """Logits (N, S, K), floating."""
    rest: Tensor
    """Logarithm of the sum of exp(logit) over all other tokens (N, S) float32; -inf: there are none."""
    vocabulary: int
    """Number of tokens of the vocabulary."""

    def logits(self, rows: Tensor | slice) -> Tensor:
        """Logits (n, V) float32 of the tokens at `rows` (n,) int64, counted over all sequences; the rest is divided
        equally among the tokens without a logit."""
        values, rest = self.values.flatten(0, 1)[rows].float(), self.rest.flatten()[rows].unsqueeze(1)
        each = rest - math.log(max(self.vocabulary - values.shape[1], 1))
        return each.repeat(1, self.vocabulary).scatter_(1, self.indices.flatten(0, 1)[rows].long(), values)


class HiddenStates(NamedTuple):
    """Inputs of a decoder's last layer, and that layer's parameters, which take less memory than the logits of every
    token; N sequences of S tokens, hidden size H, V tokens of the vocabulary."""

    hidden: Tensor
    """(N, S, H), floating."""
    weight: Tensor
    """(V, H), in the same dtype."""
    bias: Tensor | None = None
    """(V,) in the same dtype, if the layer has one."""
    codes: Tensor | None = None
    """(V,) int64: the code of every token, if `weight` is a codebook (K, H) whose K logits the tokens share; such a
    layer has no bias. None: every token has a row of `weight`."""

    @property
    def vocabulary(self) -> int:
        """V."""
        return len(self.weight if self.codes is None else self.codes)

    @property
    def rows(self) -> Tensor:
        """The hidden states, one row per token (N S, H), floating."""
        return self.hidden.flatten(0, 1)

    def logits(self, rows: Tensor | slice) -> Tensor:
        """Logits (n, V), in the dtype of `hidden`, of the tokens at `rows` (n,) int64, counted over all sequences."""
        logits = F.linear(self.rows[rows], self.weight, self.bias)
        return logits if self.codes is None else logits[:, self.codes]


Answer = Tensor | HiddenStates | LikeliestTokens


@dataclass(frozen=True, eq=False)
class TeacherSignal:
    """Outputs of a teacher for a batch, without gradient."""

    outputs: Answer
    """Outputs (B, C), floating; of a language model the inputs of its last layer, or the largest logits."""
    head: Tensor | None = None
    """Weight (C, D), floating, of the last linear layer, which outputs the logits; the same for every batch."""
    features: Mapping[Tap, Tensor] = field(default_factory=dict)
    """Activations (B, ...), floating."""
    tokens: Tensor | None = None
    """(B, S) bool: the teacher's tokens that aren't padding; none if its inputs aren't texts."""
    rows: Tensor | None = None
    """(B, S) int64: for every token of the student the position in the teacher's sequence after the same text, -1 if
    there is none; none: student and teacher have the same tokens."""

    @property
    def logits(self) -> Tensor:
        """The outputs for whole samples (B, C), floating. Raises TypeError for a language model."""
        if not isinstance(self.outputs, Tensor):
            raise TypeError("the logits of a language model are computed where they are used, some rows at a time")
        return self.outputs
