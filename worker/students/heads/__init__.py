"""Heads by their kind in the contract: from features (N, D) to outputs (N, C), floating.

Every head of a built-in network but `vq-logits` is an `nn.Linear`, so that its `weight` (C, D) has a row per output,
which the alignment of classes and the start from other models rely on; a codebook has a code per output instead.
"""

from __future__ import annotations

from worker.students.heads import linear, nb_diag, normalised, svm, vq_logits
from worker.students.heads.registry import HEADS as HEADS

__all__ = ["HEADS", "linear", "nb_diag", "normalised", "svm", "vq_logits"]
