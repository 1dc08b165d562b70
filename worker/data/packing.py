"""Packing: documents are concatenated and cut into sequences of one length, without losing or repeating a token.

A token attends to all tokens before it in its sequence, including those of earlier documents, which an end token
separates, as in GPT-2's training. Targets are shifted here, and nowhere else: the target of a position is the next
token.

The tokens are in a file of any size, and sequences are read from it when they are taken. One number per token has both
its id and whether it is learned: a token that is not learned is stored as its complement.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from torch import Tensor

from worker.data.batches import Batch, whole_split
from worker.data.documents import Document
from worker.tensors import IGNORED

NARROW = 2**15
"""Largest vocabulary with two bytes per token; larger ones have four."""
BUFFER = 2**20


class Packer:
    """Writes documents, each of which ends with the token `fill`, as one row of tokens."""

    def __init__(self, file: IO[bytes], vocabulary: int, fill: int) -> None:
        self._file, self._dtype, self._fill = file, np.dtype(stored_dtype(vocabulary)), fill
        self.tokens = 0
        self.learns = False
        """Whether any token is a target."""
        self.bytes = 0
        """Bytes, in UTF-8, of the text of all targets."""

    def add(self, document: Document) -> None:
        """Append a document."""
        codes = np.where(document.counted, document.ids, ~document.ids)
        self.learns = self.learns or bool(document.counted[0 if self.tokens else 1 :].any())
        self.bytes += document.bytes
        self._write(codes)

    def fill_up(self, length: int) -> None:
        """Pad the last sequence to `length` tokens. The very last token is only a target."""
        rows = max(1, -(-(self.tokens - 1) // length))
        self._write(np.full(rows * length + 1 - self.tokens, ~self._fill, np.int64))

    def _write(self, codes: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        self._file.write(codes.astype(self._dtype).tobytes())
        self.tokens += len(codes)


@contextmanager
def packing(path: Path, vocabulary: int, length: int, fill: int) -> Iterator[Packer]:
    """A packer that writes the file at `path`, which is complete if the context ends without an error."""
    with path.open("wb", buffering=BUFFER) as file:
        yield (packer := Packer(file, vocabulary, fill))
        packer.fill_up(length)


class Beside(Protocol):
    """Additional inputs of sequences from another source."""

    def take(self, numbers: Tensor) -> dict[str, Tensor]:
        """Inputs (n, ...) by input key, of the sequences with the numbers (n,) int64."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedTexts(Batch):
    """A split whose sequences are in a file. `inputs` and `targets` have shapes alone; batches that are taken have
    values."""

    rows: Tensor
    """(N, S + 1) int16 or int32: the tokens of each sequence and the next one, as stored."""
    place: torch.device = torch.device("cpu")
    """Device of the batches that `take` returns."""
    others: tuple[Beside, ...] = ()
    """Sources of additional inputs."""

    @property
    def storage_device(self) -> torch.device:
        return self.rows.device

    @property
    def device(self) -> torch.device:
        return self.place

    def take(self, chosen: Tensor) -> Batch:
        return self._read(self.rows[chosen.cpu()], self.index[chosen.cpu()])

    def between(self, first: int, end: int) -> Batch:
        return self._read(self.rows[first:end], self.index[first:end])

    def beside(self, others: Sequence[Beside]) -> PackedTexts:
        """A copy with additional inputs."""
        shapes = {
            name: torch.empty(len(self), *values.shape[1:], dtype=values.dtype, device="meta")
            for other in others
            for name, values in other.take(torch.arange(1)).items()
        }
        return replace(self, inputs=self.inputs | shapes, others=(*self.others, *others))

    def to(self, device: torch.device) -> PackedTexts:
        """A copy whose sequences are taken to `device`."""
        return replace(self, place=device)

    def settle(self, device: torch.device, max_bytes: float) -> PackedTexts:
        return self.to(device)

    def _read(self, rows: Tensor, index: Tensor) -> Batch:
        staged = rows.pin_memory() if self.place.type == "cuda" else rows  # so that nothing waits for the copy
        codes = staged.to(self.place, non_blocking=True).long()
        counted = codes >= 0
        ids, targets = torch.where(counted, codes, ~codes), torch.where(counted, codes, IGNORED)
        input_key = next(iter(self.inputs))
        more = {name: side.to(self.place) for other in self.others for name, side in other.take(index).items()}
        return Batch({input_key: ids[:, :-1].contiguous(), **more}, targets[:, 1:].contiguous(), index.to(self.place))


def open_packed(path: Path, vocabulary: int, length: int, input_key: str) -> PackedTexts:
    """The sequences (N, S) of a file that `packing` wrote: token ids and targets, both int64.

    Every token but the very first is a target once; the target of a token that is not learned is IGNORED. The last
    sequence is padded with the end token, with IGNORED as target.
    """
    dtype = getattr(torch, stored_dtype(vocabulary))
    count = path.stat().st_size // dtype.itemsize
    stream = torch.from_file(str(path), shared=False, size=count, dtype=dtype)
    shape = torch.empty((count - 1) // length, length, dtype=torch.int64, device="meta")
    blank = whole_split({input_key: shape}, shape)
    index = torch.arange(len(shape))
    rows = stream.as_strided((len(shape), length + 1), (length, 1))
    return PackedTexts(inputs=blank.inputs, targets=blank.targets, index=index, rows=rows)


def stored_dtype(vocabulary: int) -> str:
    """Name of the dtype in which tokens of such a vocabulary are stored."""
    return "int16" if vocabulary <= NARROW else "int32"
