"""From an encoder's states of tokens to one vector of a text."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from app.recipe.students.pooling import Embedding

FEWEST = 1e-9
"""Tokens that a text without any is divided by, so that its vector is 0."""


def pool(states: Tensor, seen: Tensor, how: Embedding) -> Tensor:
    """Vectors (N, D) in at least float32 of `states` (N, S, D); `seen` (N, S) bool: tokens that aren't padding."""
    vectors = states[:, 0] if how.pooling == "cls" else _mean(states, seen)
    vectors = vectors.float() if vectors.dtype.itemsize < 4 else vectors
    return F.normalize(vectors, dim=-1) if how.normalise else vectors


def _mean(states: Tensor, seen: Tensor) -> Tensor:
    """Summed up in float32 at least."""
    wide = states.float() if states.dtype.itemsize < 4 else states
    weights = seen.unsqueeze(-1).to(wide.dtype)
    return (wide * weights).sum(1) / weights.sum(1).clamp(min=FEWEST)
