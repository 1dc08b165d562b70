"""Documents laid one behind the other, and cut into sequences of one length: no token is lost, doubled or padded away.

A token sees all tokens before it in its sequence, those of an earlier document too, behind the token that ended it, as
in GPT-2's training. Here, and nowhere else, targets are shifted: that of a place is the token after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from worker.data.documents import Document
from worker.losses.base import IGNORED


def pack(documents: Sequence[Document], length: int, fill: int) -> tuple[Tensor, Tensor]:
    """Token ids and targets, both (N, length) int64.

    Every token but the very first is a target once, unless it is not counted: then its target is IGNORED. The last
    sequence is filled up with `fill`, whose targets are ignored too.
    """
    ids = np.concatenate([document.ids for document in documents])
    counted = np.concatenate([document.counted for document in documents])
    targets = np.where(counted[1:], ids[1:], IGNORED)
    return _cut(ids[:-1], length, fill), _cut(targets, length, IGNORED)


def _cut(row: np.ndarray[tuple[int], np.dtype[np.int64]], length: int, fill: int) -> Tensor:
    rows = max(1, -(-len(row) // length))
    whole = np.full(rows * length, fill, np.int64)
    whole[: len(row)] = row
    return torch.from_numpy(whole.reshape(rows, length))
