"""Heads by their kind in the contract: from features (N, D) to outputs (N, C), floating.

Every head of a built-in network is an `nn.Linear`, so that its `weight` (C, D) has a row per output, which the
alignment of classes and the start from other models rely on. `vq_logits` is for networks of the Transformers library.
"""

from __future__ import annotations

from worker.students.heads import linear, nb_diag, normalised, svm
from worker.students.heads.registry import HEADS as HEADS

__all__ = ["HEADS", "linear", "nb_diag", "normalised", "svm"]
