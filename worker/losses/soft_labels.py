"""Soft labels restored from the probabilities of the likeliest classes alone (FKD, 2112.01528)."""

from __future__ import annotations

from torch import Tensor


def recover(columns: Tensor, probabilities: Tensor, offered: Tensor, left: Tensor | None) -> Tensor:
    """Soft labels (B, C) from floating `probabilities` (B, K) of `columns` (B, K) int64, distinct in each row.

    The remaining mass `left` (B, 1) is spread evenly over the other `offered` columns (B, C) bool; none: the
    probabilities are divided by their sum, and the other columns are 0.
    """
    others = offered.scatter(-1, columns, False)
    if left is None:
        return evenly(0.0, others, probabilities).scatter(
            -1, columns, probabilities / probabilities.sum(-1, keepdim=True)
        )
    return evenly(left, others, probabilities).scatter(-1, columns, probabilities)


def evenly(mass: Tensor | float, where: Tensor, like: Tensor) -> Tensor:
    """`mass`, a float or (B, 1), of each row spread over the columns `where` (B, C) bool, as (B, C) in the dtype of
    `like`; 0 in a row without such columns."""
    return where.to(like.dtype) * mass / where.sum(-1, keepdim=True).clamp(min=1)
