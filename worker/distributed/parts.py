"""Tensors on the disk whose rows lie in several safetensors files, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor


class _Piece(NamedTuple):
    """Where a tensor, or some of its rows, lies; only what is asked for is read."""

    slices: Any
    """What safetensors gives of one tensor."""
    file: Any

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        found: Tensor = self.slices[begin:end] if self.slices.get_shape() else self.file.get_tensor(name)
        return found


class Stored:
    """One tensor; of several pieces each has the next rows of it."""

    def __init__(self, name: str, pieces: Sequence[_Piece]) -> None:
        self._name, self._pieces = name, pieces
        self._lengths = [next(iter(piece.slices.get_shape()), 1) for piece in pieces]

    @property
    def shape(self) -> torch.Size:
        """Of the whole."""
        first = self._pieces[0].slices.get_shape()
        return torch.Size([sum(self._lengths), *first[1:]] if first else [])

    def read(self, begin: int = 0, end: int | None = None) -> Tensor:
        """Rows from `begin` to before `end`, or all of them; a scalar has one."""
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
    """All tensors of `files`, by name; raises SafetensorError or OSError."""
    found: dict[str, list[_Piece]] = {}
    for path in files:
        file: Any = safe_open(path, framework="pt")
        for name in file.keys():  # noqa: SIM118  # it is no mapping
            found.setdefault(name, []).append(_Piece(file.get_slice(name), file))
    return {name: Stored(name, pieces) for name, pieces in found.items()}
