"""Tensors on the disk whose rows are divided among several safetensors files, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor


class _Piece(NamedTuple):
    """A tensor, or some of its rows, in one file; only the requested rows are read."""

    slices: Any
    """The slice object of safetensors for one tensor."""
    file: Any

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        found: Tensor = self.slices[begin:end] if self.slices.get_shape() else self.file.get_tensor(name)
        return found


class Stored:
    """One tensor on the disk; each of several pieces has its next rows."""

    def __init__(self, name: str, pieces: Sequence[_Piece]) -> None:
        self._name, self._pieces = name, pieces
        self._lengths = [next(iter(piece.slices.get_shape()), 1) for piece in pieces]

    @property
    def shape(self) -> torch.Size:
        """Shape of the whole tensor."""
        first = self._pieces[0].slices.get_shape()
        return torch.Size([sum(self._lengths), *first[1:]] if first else [])

    def read(self, begin: int = 0, end: int | None = None) -> Tensor:
        """Rows from `begin` to before `end`, or all of them, (n, ...) in the stored dtype; a scalar has one row."""
        found, offset = [], 0
        end = sum(self._lengths) if end is None else end
        for piece, length in zip(self._pieces, self._lengths, strict=True):
            low, high = max(begin - offset, 0), min(end - offset, length)
            if low < high:
                found.append(piece.rows(self._name, low, high))
            offset += length
        found = found or [self._pieces[0].rows(self._name, 0, 0)]
        return torch.cat(found) if len(found) > 1 else found[0]


def open_pieces(files: Sequence[Path]) -> dict[str, Stored]:
    """Open all tensors of `files`, by name; raises SafetensorError or OSError."""
    found: dict[str, list[_Piece]] = {}
    for path in files:
        file: Any = safe_open(path, framework="pt")
        for name in file.keys():  # noqa: SIM118  # it is not a mapping
            found.setdefault(name, []).append(_Piece(file.get_slice(name), file))
    return {name: Stored(name, pieces) for name, pieces in found.items()}
