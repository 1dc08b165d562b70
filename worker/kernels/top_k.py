"""The K largest logits of each row, as in caches.

Letters: n rows, K classes of each.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from worker.tensors import RowIndex, take_rows


class TopK(NamedTuple):
    """The largest logits of n rows."""

    indices: Tensor
    """(n, K) integers, distinct in each row."""
    values: Tensor
    """Logits (n, K), floating."""
    rest: Tensor
    """Logarithm of the sum of the exponentials of all other logits (n, 1), floating; -inf: none."""

    def rows(self, rows: RowIndex) -> TopK:
        """The entries of some rows: a range, or indices (m,) int64."""
        return TopK(*(take_rows(side, rows) for side in self))


class TopKProbs(NamedTuple):
    """The teacher's softmax of n rows, at a temperature, with equal parts for the classes without a logit."""

    columns: Tensor
    """(n, K) int64."""
    logs: Tensor
    """log p of these columns (n, K), float32 or float64."""
    other: Tensor
    """log p of any other column (n, 1), float32 or float64."""
