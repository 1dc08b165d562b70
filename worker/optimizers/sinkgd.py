"""SinkGD (2502.06742): gradients whose rows and columns have equal norms."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from worker.optimizers.normalized import NormalizedOptimizer

SMALLEST = 1e-30
"""Lower bound of the largest entry and of squared norms, so that a row or column of zeros stays zero."""


class SinkGdOptimizer(NormalizedOptimizer):
    """Settings: `lr`, `matrix_ratio`, `iterations`, `betas`, `eps`, `weight_decay`, as in the contract."""

    def _normalize(self, gradients: Tensor, group: dict[str, Any]) -> Tensor:
        return equal_norms(gradients, group["iterations"])


def equal_norms(matrices: Tensor, iterations: int) -> Tensor:
    """Scale the rows of floating (k, m, n) to norm sqrt(n), then the columns to norm sqrt(m), `iterations` times.

    Only the squared factors are iterated: those of rows depend on those of columns and not on their previous values, so
    that an iteration is two products of the squared entries with a vector.
    """
    largest = matrices.abs().amax((1, 2), keepdim=True).clamp(min=SMALLEST)
    squares = (matrices / largest).square_()
    rows, columns = squares.shape[1:]
    by_row, by_column = squares.new_ones(len(squares), rows, 1), squares.new_ones(len(squares), columns, 1)
    for _ in range(iterations):
        by_row = columns / (squares @ by_column).clamp(min=SMALLEST)
        by_column = rows / (squares.mT @ by_row).clamp(min=SMALLEST)
    return matrices * (by_row.sqrt() / largest) * by_column.sqrt().mT
