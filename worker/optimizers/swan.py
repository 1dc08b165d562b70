"""SWAN (2412.13148): gradients with standardised rows, whitened."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worker.optimizers.normalized import NormalizedOptimizer

SMALLEST = 1e-8
"""Added to the variance of a row; also the lower bound of norms."""
NULL = 1e-10
"""Singular values below this share of the largest count as 0, as do those below the rounding error of the matrix."""


class SwanOptimizer(NormalizedOptimizer):
    """Settings: `lr`, `matrix_ratio`, `whitening`, `iterations`, `rescale`, `betas`, `eps`, `weight_decay`, as in
    the contract."""

    def _normalize(self, gradients: Tensor, group: dict[str, Any]) -> Tensor:
        standard = standardized_rows(gradients)
        exact = group["whitening"] == "exact"
        white = polar_factor(standard) if exact else newton_schulz(standard, group["iterations"])
        return white * (_norm(standard) / _norm(white)) if group["rescale"] else white


def standardized_rows(matrices: Tensor) -> Tensor:
    """Rows of floating (k, m, n) with mean 0 and mean square 1; a row of equal entries becomes 0."""
    centred = matrices - matrices.mean(2, keepdim=True)
    return centred / (centred.square().mean(2, keepdim=True) + SMALLEST).sqrt()


def polar_factor(matrices: Tensor) -> Tensor:
    """(X X^T)^(-1/2) X for each X of floating (k, m, n): all singular values but those of the null space become 1."""
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    rounding = max(matrices.shape[1:]) * torch.finfo(matrices.dtype).eps
    kept = values > max(NULL, rounding) * values[:, :1]
    return torch.matmul(left * kept.unsqueeze(1), right)


def newton_schulz(matrices: Tensor, iterations: int) -> Tensor:
    """Approximation of `polar_factor` of floating (k, m, n) by Newton-Schulz iterations, each of which is products of
    square matrices of the shorter side.

    Standardised rows sum to 0, so a matrix with no more columns than rows has a null space, which stays near 0.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return newton_schulz(matrices.mT, iterations).mT
    start = matrices / _norm(matrices)
    square = start @ start.mT
    three = 3.0 * torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
    inverse_root = three.expand_as(square) / 3.0
    for _ in range(iterations):
        change = 0.5 * (three - inverse_root @ square)
        square, inverse_root = square @ change, change @ inverse_root
    return inverse_root @ start


def _norm(matrices: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    return norm.clamp(min=SMALLEST)
