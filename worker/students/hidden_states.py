"""The answer of a language model before its last layer: small where logits of every token would be large."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class LikeliestTokens(NamedTuple):
    """What is kept of logits at every token: the K largest; N sequences of S tokens."""

    indices: Tensor
    """(N, S, K) integers."""
    values: Tensor
    """(N, S, K)."""
    rest: Tensor
    """Logarithm of the mass of all others (N, S) float32; -inf: there are none."""
    vocabulary: int
    """Number of all of them."""

    def logits(self, rows: Tensor | slice) -> Tensor:
        """Logits (n, V) of the tokens at `rows`, counted over all sequences: what isn't kept gets equal parts of the
        rest."""
        values, rest = self.values.flatten(0, 1)[rows].float(), self.rest.flatten()[rows].unsqueeze(1)
        each = rest - math.log(max(self.vocabulary - values.shape[1], 1))
        return each.repeat(1, self.vocabulary).scatter_(1, self.indices.flatten(0, 1)[rows].long(), values)


class HiddenStates(NamedTuple):
    """What the last layer of a decoder is given, and that layer; N sequences of S tokens."""

    hidden: Tensor
    """(N, S, H)."""
    weight: Tensor
    """(V, H), in the same dtype."""
    bias: Tensor | None = None
    """(V,), where the layer has one."""

    @property
    def rows(self) -> Tensor:
        """The hidden states token by token (N S, H)."""
        return self.hidden.flatten(0, 1)

    def logits(self, rows: Tensor | slice) -> Tensor:
        """Logits (n, V) of the tokens at `rows`, counted over all sequences."""
        return F.linear(self.rows[rows], self.weight, self.bias)
