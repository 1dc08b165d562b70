"""Losses of anchors that are compared with many rows, some anchors at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

AT_ONCE = 2**20
"""Comparisons that are computed at a time."""


def by_anchor(losses: Callable[[slice], Tensor], anchors: int, others: int) -> Tensor:
    """Losses (A,), floating, of `anchors` that are each compared with `others` rows; `losses` returns those (n,) of a
    range of anchors.

    It is called for some of them at a time, and again for their gradient, so that no comparisons are kept: memory is
    linear in the rows.
    """
    step = max(1, AT_ONCE // max(others, 1))
    if anchors <= step:
        return losses(slice(0, anchors))
    parts = [slice(first, min(first + step, anchors)) for first in range(0, anchors, step)]
    found = [checkpoint(losses, part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.cat(found)
