"""Chooses samples to hold out for evaluation: by class in proportion, or any."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.data.randomness import generator


def hold_out(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split the indices of `labels` (N,) int64 into (kept, held out), both ascending int64; `count` are held out.

    Each class gives its share, rounded so that the sum is exact (largest remainder first, then the lower class).
    """
    random = generator(seed, "hold-out")
    order = torch.randperm(len(labels), generator=random)
    by_class = order[labels[order].argsort(stable=True)]
    sizes = labels.bincount()
    shares = _shares(sizes, count)
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[by_class]]
    held = rank < shares[labels[by_class]]
    return by_class[~held].sort().values, by_class[held].sort().values


def _shares(sizes: Tensor, count: int) -> Tensor:
    exact = sizes * count  # in units of 1 / sizes.sum(), so that no rounding depends on floating point
    whole = exact // sizes.sum()
    missing = count - int(whole.sum())
    whole[(exact % sizes.sum()).argsort(descending=True, stable=True)[:missing]] += 1
    return whole


def hold_out_any(samples: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split the indices of `samples` samples into (kept, held out), both ascending int64; `count` are held out."""
    order = torch.randperm(samples, generator=generator(seed, "hold-out"))
    return order[count:].sort().values, order[:count].sort().values
