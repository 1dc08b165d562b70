"""The folder that holds the kept answers of all jobs on a machine: who may use which, and what must go to make room.

    FOLDER/lock          held while something is made, opened or thrown away
    FOLDER/KEY/          the files of one key (`worker.teachers.kept_rows`)
    FOLDER/KEY/in-use    held shared by every process that has the key open; its time of change is that of the last use

Locks are the kernel's: they end with the process that holds them, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from filelock import FileLock

from worker.teachers import kept_rows
from worker.teachers.kept_rows import KeptRows, RowLayout

LOCK, IN_USE = "lock", "in-use"
DRAFT = "draft-"
LOCK_SECONDS = 10.0
"""Longest wait for a process that makes or throws away something."""
_KEY = re.compile(r"[0-9a-f]{64}")


class NoRoom(Exception):
    """The shelf is too small, or what is on it is in use; the text says which."""


class OpenEntry(NamedTuple):
    """An open entry; it is not thrown away before it is closed, or its process ends."""

    rows: KeptRows
    lock: BinaryIO

    def close(self) -> None:
        """Let go of it."""
        self.rows.close()
        with suppress(OSError):
            os.utime(self.lock.fileno())
        self.lock.close()


class DiskCache:
    """Entries by key in `folder`, of at most `max_bytes` together; the least recently used go first."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes

    def open(self, key: str, layout: RowLayout) -> OpenEntry:
        """The entry of `key`, made if there is none; raises NoRoom, or OSError when the disk is full or unfit, and
        TimeoutError when another process holds the lock for too long."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(self._folder / LOCK, timeout=LOCK_SECONDS, fallback_to_soft=False):  # raises TimeoutError
            self._sweep()
            entry = self._folder / key
            if not kept_rows.fits(entry, layout):
                self._make(entry, layout)
            return _hold(entry, layout)

    def _entries(self) -> list[Path]:
        """All entries, by their keys, the least recently used first."""
        entries = [path for path in self._folder.iterdir() if _KEY.fullmatch(path.name)]
        return sorted(entries, key=_last_use)

    def _make(self, entry: Path, layout: RowLayout) -> None:
        if entry.exists():  # damaged, or of another layout
            _throw_away(entry)
        self._make_room(layout.bytes)
        draft = self._folder / f"{DRAFT}{entry.name}"
        draft.mkdir(mode=0o700)
        try:
            kept_rows.create(draft, layout)
            (draft / IN_USE).touch()
            draft.rename(entry)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _make_room(self, needed: int) -> None:
        """Throw away as little as needed, and nothing when that would not do."""
        if needed > self._max_bytes:
            raise NoRoom(f"{needed} bytes are needed, and at most {self._max_bytes} may be kept")
        sizes = {entry: _size(entry) for entry in self._entries()}
        idle = [entry for entry in sizes if not _in_use(entry)]
        excess = sum(sizes.values()) + needed - self._max_bytes
        if excess > sum(sizes[entry] for entry in idle):
            raise NoRoom(f"{needed} bytes are needed, and other jobs use what could make room")
        for entry in idle:
            if excess <= 0:
                break
            _throw_away(entry)
            excess -= sizes[entry]

    def _sweep(self) -> None:
        """Drafts of a process that died over them; whoever makes one has the lock, which we have."""
        for draft in self._folder.glob(f"{DRAFT}*"):
            shutil.rmtree(draft, ignore_errors=True)


def _hold(entry: Path, layout: RowLayout) -> OpenEntry:
    lock = (entry / IN_USE).open("rb")
    try:
        if _try_lock(lock):
            kept_rows.recover(entry)
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.utime(lock.fileno())
        return OpenEntry(KeptRows(entry, layout), lock)
    except BaseException:
        lock.close()
        raise


def _throw_away(entry: Path) -> None:
    """Remove it; what another process has open of it stays readable there, and is gone with that process."""
    shutil.rmtree(entry)


def _in_use(entry: Path) -> bool:
    try:
        with (entry / IN_USE).open("rb") as lock:
            return not _try_lock(lock)
    except FileNotFoundError:
        return False


def _last_use(entry: Path) -> int:
    with suppress(FileNotFoundError):
        return (entry / IN_USE).stat().st_mtime_ns
    return 0


def _size(entry: Path) -> int:
    return sum(file.stat().st_size for file in entry.iterdir())


def _try_lock(file: BinaryIO) -> bool:
    """Exclusive. Not filelock's, which can't turn an exclusive lock into a shared one without letting go."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
