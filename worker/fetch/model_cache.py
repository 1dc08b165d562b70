"""Cache of folders by digest, shared by attempts; the least recently used are evicted when space is short.

Several workers of a machine share a cache without a lock: a folder is added and removed by renaming, and used through
links to its files, which remain valid after the folder is removed.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

LEAVING = ".leaving-"
SECONDS_TO_LEAVE = 3600.0


class FetchCache:
    """Holds up to `max_bytes` in folders under `root`."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root, self._max_bytes = root, max_bytes

    async def place(self, digest: str, target: Path, make: Callable[[Path], Awaitable[None]]) -> None:
        """Fill the folder `target` from the cache entry `digest`; `make` fills an empty folder if there is none."""
        if await asyncio.to_thread(self._take, digest, target):
            return
        await make(target)
        await asyncio.to_thread(self._keep, target, digest)

    def _take(self, digest: str, target: Path) -> bool:
        entry = self._root / digest
        target.mkdir(parents=True, exist_ok=True)
        try:
            os.utime(entry)
            for path in files_in(entry):
                _link(path, target / path.relative_to(entry))
        except FileNotFoundError:  # never there, or removed in between
            _empty(target)
            return False
        return True

    def _keep(self, folder: Path, digest: str) -> None:
        """Copy by links into a temporary folder, then rename it. A failure is no error: it costs the next job time."""
        with suppress(OSError):
            self._root.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(prefix=LEAVING, dir=self._root))
            try:
                for path in files_in(folder):
                    path.chmod(0o444)
                    _link(path, fresh / path.relative_to(folder))
                fresh.rename(self._root / digest)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
            self._make_room(digest)

    def _make_room(self, newest: str) -> None:
        """Evict entries beyond the limit, and incomplete ones of killed workers."""
        by_use = sorted(self._root.iterdir(), key=lambda path: (path.name == newest, _last_used(path)), reverse=True)
        room = self._max_bytes
        for path in by_use:
            if path.name.startswith(LEAVING):
                if _last_used(path) < time.time() - SECONDS_TO_LEAVE:
                    shutil.rmtree(path, ignore_errors=True)
            elif (room := room - _size(path)) < 0:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        leaving = self._root / f"{LEAVING}{secrets.token_hex(8)}"
        with suppress(FileNotFoundError):  # another worker was faster
            path.rename(leaving)
            shutil.rmtree(leaving, ignore_errors=True)


def files_in(folder: Path) -> list[Path]:
    """All files of a folder and of those within it, by name."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _link(source: Path, target: Path) -> None:
    """Share the file by a link if both are on one disk; files here are never written again."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # never written through: it may be a link to a cached file
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def _empty(folder: Path) -> None:
    for path in files_in(folder):
        path.unlink()


def _size(folder: Path) -> int:
    with suppress(FileNotFoundError):
        return sum(path.stat().st_size for path in files_in(folder))
    return 0


def _last_used(folder: Path) -> float:
    with suppress(FileNotFoundError):
        return folder.stat().st_mtime
    return 0.0
