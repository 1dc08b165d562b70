"""Losses of rows of materialised logits, and the gradient written in place of the student's."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RowLosses(NamedTuple):
    """Of each row (rows,), float32; 0 where the row is ignored or the part weighs nothing."""

    total: Tensor
    """Both parts with their weights and the row's."""
    divergence: Tensor
    """Before its weight."""
    cross_entropy: Tensor
    """Before its weight; with class weights, where there are any."""
