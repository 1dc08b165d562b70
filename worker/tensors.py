"""Conventions and small operations on tensors."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100
"""Label of a row that the losses ignore."""

RowIndex = slice | Tensor
"""Rows of a batch: a range, or their numbers (n,) int64."""


def at_least_float32(logits: Tensor) -> Tensor:
    """`logits`, of any shape and floating dtype, unchanged if they are float32 or float64, else as float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def surely_none(marked: Tensor) -> bool:
    """Whether no entry of `marked` (bool, any shape) is true; false if that needs a wait for a device."""
    return marked.device.type == "cpu" and not bool(marked.any())


def take_rows(of: Tensor, rows: RowIndex) -> Tensor:
    """Rows of a tensor (N, ...) of any dtype: a view (n, ...) for a range, else a copy."""
    return of[rows] if isinstance(rows, slice) else of.index_select(0, rows)


def take_rows_of_any(of: Tensor | None, rows: RowIndex) -> Tensor | None:
    """`take_rows` of a tensor that may be missing."""
    return None if of is None else take_rows(of, rows)
