"""Clusters of vectors by k-means."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 25
"""Rounds of Lloyd's algorithm; it ends earlier when nothing changes."""
DISTANCES = 1 << 24
"""Distances that are computed at a time."""


@torch.no_grad()
def k_means(rows: Tensor, centres: Tensor, rounds: int = ROUNDS) -> tuple[Tensor, Tensor]:
    """Centres (K, D) of clusters of `rows` (V, D), floating, and the cluster (V,) int64 of each, by Lloyd's algorithm
    from `centres` (K, D); of equally near centres the first counts, and one without rows stays where it is."""
    clusters = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for number in range(rounds):
        found = _nearest(rows, centres)
        if number and torch.equal(found, clusters):
            break
        clusters = found
        counts = torch.bincount(clusters, minlength=len(centres)).unsqueeze(1)
        sums = torch.zeros_like(centres).index_add_(0, clusters, rows)
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres, clusters


def _nearest(rows: Tensor, centres: Tensor) -> Tensor:
    squares = centres.square().sum(1)
    parts = torch.split(rows, max(1, DISTANCES // len(centres)))
    return torch.cat([(squares - 2.0 * part @ centres.T).argmin(1) for part in parts])
