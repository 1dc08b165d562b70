"""Soft labels of which only the likeliest classes are known, as stores of them keep no more (FKD, 2112.01528)."""

from __future__ import annotations

from torch import Tensor


def recover(columns: Tensor, probabilities: Tensor, offered: Tensor, left: Tensor | None) -> Tensor:
    """Soft labels (B, C) from the `probabilities` (B, K) of `columns` (B, K), K different ones in each row.

    What is `left` (B, 1) beside them is spread evenly over the other `offered` columns (B, C) bool; none: they are
    divided by their sum, and the others have nothing.
    """
    others = offered.scatter(-1, columns, False)
    if left is None:
        return evenly(0.0, others, probabilities).scatter(
            -1, columns, probabilities / probabilities.sum(-1, keepdim=True)
        )
    return evenly(left, others, probabilities).scatter(-1, columns, probabilities)


def evenly(mass: Tensor | float, where: Tensor, like: Tensor) -> Tensor:
    """`mass` of each row spread over the columns `where` (B, C) bool, in the dtype of `like`; 0 if there are none."""
    return where.to(like.dtype) * mass / where.sum(-1, keepdim=True).clamp(min=1)
