"""Rows of columns in memory-mapped files, filled in any order by any number of processes, consistent after a crash.

A row is in one of three states, a byte each in `filled.bin`:

    EMPTY     may not be read.
    WRITTEN   its bytes were passed to the operating system: every process reads them, and they survive a crash of all
              processes, but not of the machine.
    SYNCED    its bytes are on the disk.

A state is set after the bytes, never before: WRITTEN after the bytes were copied, SYNCED after `fsync` of the columns.
So after a crash of the machine, rows marked SYNCED are complete wherever the mark itself reached the disk. WRITTEN has
no meaning then, and the first process that opens the rows after a boot resets those marks (`recover`). If a sync fails,
the operating system may have dropped the bytes that it could not write, and the marks are reset too.

All bytes are reserved when the files are created, since a write through a mapping to a full disk would kill the
process. The files must be on a local disk. Processes share them by its page cache, so they send each other nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import torch
from torch import Tensor

from worker.teachers.encoding import Columns, StoredColumn

EMPTY, WRITTEN, SYNCED = 0, 1, 2
RECORD, STATES, BOOT, WRITER = "cache.json", "filled.bin", "boot", "writer"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
WAIT_SECONDS = 0.1
"""Longest wait for another process that writes: the processes of one job write at the same moment."""
BLANK = bytes(1 << 20)


@dataclass(frozen=True)
class RowLayout:
    """Layout of the files: `rows` rows of these columns; `about` is a description for readers."""

    rows: int
    columns: Mapping[str, StoredColumn]
    about: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        """Disk space of all files but the small ones, in bytes."""
        return self.rows * (1 + sum(column.row_bytes for column in self.columns.values()))

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file of rows, by file name."""
        columns = {f"{name}.bin": self.rows * column.row_bytes for name, column in self.columns.items()}
        return columns | {STATES: self.rows}

    @property
    def record(self) -> dict[str, Any]:
        """Content of `cache.json`."""
        columns = {
            name: {"dtype": str(column.dtype).removeprefix("torch."), "shape": [self.rows, column.width]}
            for name, column in self.columns.items()
        }
        return {**self.about, "columns": columns}


def create(folder: Path, layout: RowLayout) -> None:
    """Create the files of `layout`, all rows empty, in the empty `folder`; raises OSError if the disk is full."""
    for name, size in layout.sizes.items():
        with (folder / name).open("xb") as file:
            _reserve(file, size)
            os.fsync(file.fileno())
    _write(folder / BOOT, boot_id())
    (folder / WRITER).touch()
    _write(folder / RECORD, json.dumps(layout.record, indent=2) + "\n")


def fits(folder: Path, layout: RowLayout) -> bool:
    """Whether the files in `folder` are those of `layout`, and complete."""
    try:
        sizes = {name: (folder / name).stat().st_size for name in layout.sizes}
        record = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return False
    return sizes == layout.sizes and record == layout.record


def recover(folder: Path) -> None:
    """Empty the rows that may not have reached the disk before a crash; no other process may have them open."""
    now = boot_id()
    with suppress(OSError):
        if (folder / BOOT).read_text(encoding="utf-8") == now:
            return
    states = _map(folder / STATES, torch.uint8, (folder / STATES).stat().st_size)
    states[states == WRITTEN] = EMPTY
    _sync(folder / STATES)
    _write(folder / BOOT, now)


def boot_id() -> str:
    """Identifier of the machine's current boot; a new one for each call where the system has none."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return uuid4().hex


class CachedRows:
    """The rows in `folder`, for reading and writing by row number.

    A row is written once: later writes of the same row change nothing.
    """

    def __init__(self, folder: Path, layout: RowLayout) -> None:
        self._states = _map(folder / STATES, torch.uint8, layout.rows)
        self._columns = {
            name: _map(folder / f"{name}.bin", column.dtype, layout.rows * column.width).view(layout.rows, -1)
            for name, column in layout.columns.items()
        }
        with ExitStack() as stack:
            # Opened before the first write, so that `fsync` reports every failure to write back.
            self._column_files = [stack.enter_context((folder / f"{name}.bin").open("rb")) for name in layout.columns]
            self._states_file = stack.enter_context((folder / STATES).open("rb"))
            self._writer = stack.enter_context((folder / WRITER).open("rb"))
            self._open = stack.pop_all()
        self._dirty = False

    def filled(self, rows: Tensor) -> Tensor:
        """Whether each of `rows` (B,) int64 may be read: (B,) bool."""
        return self._states[rows] != EMPTY

    def count(self) -> int:
        """Number of rows that may be read."""
        return int(self._states.count_nonzero())

    def read(self, rows: Tensor) -> Columns:
        """A copy of `rows` (B,) int64; the values of empty rows are undefined."""
        return {name: column.index_select(0, rows) for name, column in self._columns.items()}

    def write(self, rows: Tensor, columns: Columns) -> None:
        """Fill those of `rows` (B,) int64 that are empty; none if another process holds the write lock for too long.

        `rows` must be distinct; `columns` are (B, width) each, on the CPU.
        """
        with self._writing() as locked:
            fresh = (self._states[rows] == EMPTY).nonzero().squeeze(1)
            if not locked or not len(fresh):
                return
            target = rows[fresh]
            for name, column in self._columns.items():
                column.index_copy_(0, target, columns[name] if len(fresh) == len(rows) else columns[name][fresh])
            self._states.index_fill_(0, target, WRITTEN)
            self._dirty = True

    def sync(self) -> None:
        """Sync all written rows to the disk; raises OSError after emptying the rows that may be lost."""
        if not self._dirty:
            return
        written = self._states == WRITTEN
        try:
            for column in self._column_files:
                os.fsync(column.fileno())
            self._states[written] = SYNCED
            os.fsync(self._states_file.fileno())
        except OSError:
            self._states[written] = EMPTY
            raise
        self._dirty = False

    def close(self) -> None:
        """Close the files; rows that were not synced stay as they are."""
        self._open.close()

    @contextmanager
    def _writing(self) -> Iterator[bool]:
        until = time.monotonic() + WAIT_SECONDS
        while not (locked := self._try_lock()) and time.monotonic() < until:
            time.sleep(WAIT_SECONDS / 100)
        if not locked:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(self._writer, fcntl.LOCK_UN)

    def _try_lock(self) -> bool:
        with suppress(BlockingIOError):
            fcntl.flock(self._writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False


def _map(path: Path, dtype: torch.dtype, size: int) -> Tensor:
    return torch.from_file(str(path), shared=True, size=size, dtype=dtype)


def _reserve(file: BinaryIO, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, len(BLANK)):  # macOS
        file.write(BLANK[: size - start])
    file.flush()


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_text(text, encoding="utf-8")
    _sync(draft)
    draft.rename(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
