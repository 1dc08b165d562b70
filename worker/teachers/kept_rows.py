"""Rows of columns in memory-mapped files, filled in any order by any number of processes, sound after any crash.

A row is in one of three states, a byte each in `filled.bin`:

    EMPTY     nothing may be read.
    WRITTEN   its bytes were handed to the system: every process reads them, and they survive the death of all
              processes, but not that of the machine.
    SYNCED    the disk has them.

A state follows the bytes, never the other way round: WRITTEN is set after the bytes were copied, SYNCED after `fsync`
of the columns. So when the machine dies, rows marked SYNCED are whole wherever the mark itself reached the disk;
WRITTEN says nothing then, and whoever opens the rows first after a boot takes those marks back (`recover`). When a sync
fails, the system may have dropped the bytes that it could not write, and the marks are taken back too.

All bytes are reserved when the files are made, since a write through a mapping to a full disk would kill the process.
The files must lie on a local disk. Processes share them by its cache, so nothing needs to be sent between them.
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
"""Longest wait for another process that writes: those of one job are told at the same moment."""
BLANK = bytes(1 << 20)


@dataclass(frozen=True)
class RowLayout:
    """What the files look like: `rows` rows of these columns, described for people by `about`."""

    rows: int
    columns: Mapping[str, StoredColumn]
    about: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        """Disk space of all files but the small ones."""
        return self.rows * (1 + sum(column.row_bytes for column in self.columns.values()))

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file of rows, by name."""
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
    """Make the files of `layout`, all rows empty, in the empty `folder`; raises OSError when the disk has no room."""
    for name, size in layout.sizes.items():
        with (folder / name).open("xb") as file:
            _reserve(file, size)
            os.fsync(file.fileno())
    _write(folder / BOOT, boot_id())
    (folder / WRITER).touch()
    _write(folder / RECORD, json.dumps(layout.record, indent=2) + "\n")


def fits(folder: Path, layout: RowLayout) -> bool:
    """Whether the files in `folder` are those of `layout`, complete."""
    try:
        sizes = {name: (folder / name).stat().st_size for name in layout.sizes}
        record = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return False
    return sizes == layout.sizes and record == layout.record


def recover(folder: Path) -> None:
    """Empty the rows that may not have reached the disk when the machine went down; nobody else may have them open."""
    now = boot_id()
    with suppress(OSError):
        if (folder / BOOT).read_text(encoding="utf-8") == now:
            return
    states = _map(folder / STATES, torch.uint8, (folder / STATES).stat().st_size)
    states[states == WRITTEN] = EMPTY
    _sync(folder / STATES)
    _write(folder / BOOT, now)


def boot_id() -> str:
    """Names the time since the machine went up; where the system has no such name, a new one for each question."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return uuid4().hex


class KeptRows:
    """The rows in `folder`, for reading and writing by row number.

    A row has its first writer's bytes for good: whoever comes later with the same row leaves it alone.
    """

    def __init__(self, folder: Path, layout: RowLayout) -> None:
        self._states = _map(folder / STATES, torch.uint8, layout.rows)
        self._columns = {
            name: _map(folder / f"{name}.bin", column.dtype, layout.rows * column.width).view(layout.rows, -1)
            for name, column in layout.columns.items()
        }
        with ExitStack() as stack:
            # OpenEntry open from the start, so that no failure to write back escapes `fsync`.
            self._column_files = [stack.enter_context((folder / f"{name}.bin").open("rb")) for name in layout.columns]
            self._states_file = stack.enter_context((folder / STATES).open("rb"))
            self._writer = stack.enter_context((folder / WRITER).open("rb"))
            self._open = stack.pop_all()
        self._dirty = False

    def filled(self, rows: Tensor) -> Tensor:
        """Which of `rows` (B,) int64 may be read: (B,) bool."""
        return self._states[rows] != EMPTY

    def count(self) -> int:
        """Rows that may be read."""
        return int(self._states.count_nonzero())

    def read(self, rows: Tensor) -> Columns:
        """A copy of `rows`; of those that are empty, nothing that means anything."""
        return {name: column.index_select(0, rows) for name, column in self._columns.items()}

    def write(self, rows: Tensor, columns: Columns) -> None:
        """Fill those of `rows` that are empty; none where another process keeps writing, which may be asleep for all we
        know.

        No row may be named twice.
        """
        with self._writing() as alone:
            fresh = (self._states[rows] == EMPTY).nonzero().squeeze(1)
            if not alone or not len(fresh):
                return
            target = rows[fresh]
            for name, column in self._columns.items():
                column.index_copy_(0, target, columns[name] if len(fresh) == len(rows) else columns[name][fresh])
            self._states.index_fill_(0, target, WRITTEN)
            self._dirty = True

    def sync(self) -> None:
        """Bring all that was written to the disk; raises OSError after emptying the rows that may be lost."""
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
        """Let go of the files; what was not synced stays as it is."""
        self._open.close()

    @contextmanager
    def _writing(self) -> Iterator[bool]:
        until = time.monotonic() + WAIT_SECONDS
        while not (alone := self._locked()) and time.monotonic() < until:
            time.sleep(WAIT_SECONDS / 100)
        if not alone:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(self._writer, fcntl.LOCK_UN)

    def _locked(self) -> bool:
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
