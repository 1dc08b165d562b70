"""Pooling: from an encoder's hidden states to one embedding of a text."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from app.recipe.students.pooling import Embedding

FEWEST = 1e-9
"""Least divisor, so that the embedding of a text without tokens is 0."""


def pool(states: Tensor, tokens: Tensor, how: Embedding) -> Tensor:
    """Embeddings (N, D) in at least float32, from floating `states` (N, S, D); `tokens` (N, S) bool: tokens that aren't
    padding."""
    vectors = states[:, 0] if how.pooling == "cls" else _mean(states, tokens)
    vectors = vectors.float() if vectors.dtype.itemsize < 4 else vectors
    return F.normalize(vectors, dim=-1) if how.normalise else vectors


def _mean(states: Tensor, tokens: Tensor) -> Tensor:
    """Mean over the tokens, in at least float32."""
    wide = states.float() if states.dtype.itemsize < 4 else states
    weights = tokens.unsqueeze(-1).to(wide.dtype)
    return (wide * weights).sum(1) / weights.sum(1).clamp(min=FEWEST)
