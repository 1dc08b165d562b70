"""The answer of a language model before its last layer: small where logits of every token would be large."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class LastStates(NamedTuple):
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
