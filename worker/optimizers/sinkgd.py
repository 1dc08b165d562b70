"""SinkGD (2502.06742): gradients whose rows and columns have equal norms."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.linalg import vector_norm

from worker.optimizers.normalized import Normalized

SMALLEST = 1e-8
"""Norms are taken to be at least this, so that a row or column of zeros stays one."""


class SinkGd(Normalized):
    """Settings: `lr`, `matrix_ratio`, `iterations`, `betas`, `eps`, `weight_decay`, as the contract describes them."""

    def _normalize(self, gradients: Tensor, group: dict[str, Any]) -> Tensor:
        return equal_norms(gradients, group["iterations"])


def equal_norms(matrices: Tensor, iterations: int) -> Tensor:
    """Scale the rows of (k, m, n) to norm sqrt(n), then the columns to norm sqrt(m), `iterations` times."""
    rows, columns = matrices.shape[1:]
    for _ in range(iterations):
        matrices = matrices * (math.sqrt(columns) / vector_norm(matrices, dim=2, keepdim=True).clamp(min=SMALLEST))
        matrices = matrices * (math.sqrt(rows) / vector_norm(matrices, dim=1, keepdim=True).clamp(min=SMALLEST))
    return matrices
