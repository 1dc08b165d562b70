"""The K largest logits of each row, as caches keep them.

Letters: n rows, K classes kept of each.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from worker.tensors import RowIndex, take_rows


class TopK(NamedTuple):
    """The largest logits of n rows."""

    indices: Tensor
    """(n, K) integers, different ones in each row."""
    values: Tensor
    """Logits (n, K)."""
    rest: Tensor
    """Logarithm of the sum of the exponentials of all other logits (n, 1); -inf: none."""

    def rows(self, rows: RowIndex) -> TopK:
        """The same of some of them."""
        return TopK(*(take_rows(side, rows) for side in self))


class TopKProbs(NamedTuple):
    """The teacher's softmax of n rows, at a temperature, with equal parts for the classes that aren't kept."""

    columns: Tensor
    """(n, K) int64."""
    logs: Tensor
    """log p of the kept columns (n, K)."""
    other: Tensor
    """log p of any other column (n, 1)."""
