"""The folder with the cached teacher outputs of all jobs on a machine: locking and eviction of its entries.

    FOLDER/lock          locked while an entry is created, opened or removed
    FOLDER/KEY/          the files of one key (`worker.teachers.cached_rows`)
    FOLDER/KEY/in-use    share-locked by every process that has the key open; its modification time is the last use

The kernel releases the locks of a process when it ends, however it ends.
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

from worker.teachers import cached_rows
from worker.teachers.cached_rows import CachedRows, RowLayout

LOCK, IN_USE = "lock", "in-use"
DRAFT = "draft-"
LOCK_SECONDS = 10.0
"""Longest wait for a process that creates or removes an entry."""
_KEY = re.compile(r"[0-9a-f]{64}")


class CacheFull(Exception):
    """The cache is too small, or its entries are in use; the message has the reason."""


class OpenEntry(NamedTuple):
    """An open entry; it is not evicted before it is closed, or its process ends."""

    rows: CachedRows
    lock: BinaryIO

    def close(self) -> None:
        """Close the files and release the lock."""
        self.rows.close()
        with suppress(OSError):
            os.utime(self.lock.fileno())
        self.lock.close()


class DiskCache:
    """Entries by key in `folder`, of at most `max_bytes` in all; the least recently used are evicted first."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes

    def open(self, key: str, layout: RowLayout) -> OpenEntry:
        """Open the entry of `key`, and create it if there is none.

        Raises CacheFull, OSError if the disk is full or can't be used, and TimeoutError if another process holds the
        lock for too long.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(self._folder / LOCK, timeout=LOCK_SECONDS, fallback_to_soft=False):  # raises TimeoutError
            self._sweep()
            entry = self._folder / key
            if not cached_rows.fits(entry, layout):
                self._create(entry, layout)
            return _open(entry, layout)

    def _entries(self) -> list[Path]:
        """All entries, by their keys, the least recently used first."""
        entries = [path for path in self._folder.iterdir() if _KEY.fullmatch(path.name)]
        return sorted(entries, key=_last_use)

    def _create(self, entry: Path, layout: RowLayout) -> None:
        if entry.exists():  # damaged, or of another layout
            _remove(entry)
        self._evict(layout.bytes)
        draft = self._folder / f"{DRAFT}{entry.name}"
        draft.mkdir(mode=0o700)
        try:
            cached_rows.create(draft, layout)
            (draft / IN_USE).touch()
            draft.rename(entry)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _evict(self, needed: int) -> None:
        """Free `needed` bytes by removing as few entries as possible; none if that would not suffice."""
        if needed > self._max_bytes:
            raise CacheFull(f"{needed} bytes are needed; the limit is {self._max_bytes}")
        sizes = {entry: _size(entry) for entry in self._entries()}
        idle = [entry for entry in sizes if not _in_use(entry)]
        excess = sum(sizes.values()) + needed - self._max_bytes
        if excess > sum(sizes[entry] for entry in idle):
            raise CacheFull(f"{needed} bytes are needed; the entries to evict are used by other jobs")
        for entry in idle:
            if excess <= 0:
                break
            _remove(entry)
            excess -= sizes[entry]

    def _sweep(self) -> None:
        """Remove drafts of processes that ended while creating them: a live creator would hold the lock, which we
        hold."""
        for draft in self._folder.glob(f"{DRAFT}*"):
            shutil.rmtree(draft, ignore_errors=True)


def _open(entry: Path, layout: RowLayout) -> OpenEntry:
    lock = (entry / IN_USE).open("rb")
    try:
        if _try_lock(lock):
            cached_rows.recover(entry)
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.utime(lock.fileno())
        return OpenEntry(CachedRows(entry, layout), lock)
    except BaseException:
        lock.close()
        raise


def _remove(entry: Path) -> None:
    """Remove an entry; files that another process has open stay readable there until it closes them."""
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
    """Try to take an exclusive lock; filelock can't turn one into a shared lock without releasing it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
