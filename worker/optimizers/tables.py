"""Tables for kernels on many tensors: the address of each, and the tiles that it is cut into.

Both are cached as long as no address changes: gradients usually have the same addresses again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 2048
"""Elements of a tile that a program holds at a time, of each tensor: 16 per thread."""
PIECE = 8 * BLOCK
"""Longest row that is not cut into pieces: a longer one would delay the other programs."""


class Pointers(NamedTuple):
    """Addresses of one parameter's tensors, in the order of the kernels' table."""

    weight: int
    gradient: int
    average: int
    square: int
    age: int
    image: int


class TableRows(NamedTuple):
    """A tensor as rows for the kernels."""

    rows: int
    length: int
    projected: bool

    @property
    def pieces(self) -> int:
        """Pieces of each row."""
        return -(-self.length // PIECE)

    @property
    def together(self) -> int:
        """Rows of a tile: few enough for a cache to hold them for a program's two passes."""
        return next((rows for rows in (16, 4) if self.length <= 2 * BLOCK // rows), 1)

    @property
    def tiles(self) -> int:
        """Tiles of the tensor."""
        return -(-self.rows // self.together) * self.pieces


class TableLayout(NamedTuple):
    """Tiles of several tensors."""

    table: Tensor
    """(7, n) int64, see `worker.optimizers.projected_kernels`."""
    owners: Tensor
    """(tiles,) int32: index of each tile's tensor."""
    sums: int
    """Number of pieces of rows of all tensors."""


def table_rows_of(tensor: Tensor) -> TableRows | None:
    """Rows of a tensor of any shape and dtype: its output channels, or a single one without channels; None: a row is
    not contiguous."""
    if tensor.numel() == 0 or not _is_dense(tensor):
        return None
    rows = len(tensor) if tensor.ndim > 1 else 1
    return TableRows(rows, tensor.numel() // rows, projected=tensor.ndim > 1)


def _is_dense(tensor: Tensor) -> bool:
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    return tensor.is_contiguous() or (last is not None and tensor.is_contiguous(memory_format=last))


@lru_cache(maxsize=32)
def layout_of(tensors: tuple[TableRows, ...], device: torch.device) -> TableLayout:
    """Tiles of tensors, on their device."""
    tiles, sums = [each.tiles for each in tensors], [each.rows * each.pieces for each in tensors]
    columns = zip(_starts(tiles), tensors, _starts(sums), strict=True)
    table = [(first, *one[:2], one.pieces, one.together, place, int(one.projected)) for first, one, place in columns]
    owners = torch.repeat_interleave(torch.arange(len(tensors), dtype=torch.int32), torch.tensor(tiles))
    return TableLayout(_moved(torch.tensor(table).t().contiguous(), device), _moved(owners, device), sum(sums))


@lru_cache(maxsize=8)
def addresses_of(tensors: tuple[Pointers, ...], device: torch.device) -> Tensor:
    """Table (6, n) int64 on a device."""
    return _moved(torch.tensor(tensors).t().contiguous(), device)


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *accumulate(sizes[:-1])]


def _moved(table: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting for it."""
    return table if device.type == "cpu" else table.pin_memory().to(device, non_blocking=True)
