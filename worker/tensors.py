"""Conventions and small operations on tensors that every room shares."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100
"""Label of a row that counts for nothing."""

RowIndex = slice | Tensor
"""Rows of a batch: a range, or their numbers (n,) int64."""


def at_least_float32(logits: Tensor) -> Tensor:
    """`logits`, of any shape and floating dtype, unchanged when they are float32 or float64, else as float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def surely_none(marked: Tensor) -> bool:
    """Whether nothing is marked (bool, any shape), as far as that is known without waiting for a device."""
    return marked.device.type == "cpu" and not bool(marked.any())


def take_rows(of: Tensor, rows: RowIndex) -> Tensor:
    """Those rows of a tensor (N, ...): a view (n, ...) of a range, else a copy."""
    return of[rows] if isinstance(rows, slice) else of.index_select(0, rows)


def take_rows_of_any(of: Tensor | None, rows: RowIndex) -> Tensor | None:
    """`take_rows` of a tensor that may be missing."""
    return None if of is None else take_rows(of, rows)
