"""The object store: local disk, S3, GCS, Azure or memory behind one class that computes and checks digests.

Keys are made only by the service, of `a-z A-Z 0-9 . _ - /`, and never reused: each has a random id, or a job's
attempt. So an object never changes, and two writers can't use the same key.
"""

from __future__ import annotations

import asyncio
import io
import re
import sys
import time
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from heapq import nsmallest
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Self
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import ObjectStore

from app.core.backends import Signer, open_backend
from app.core.chunks import CHUNK, HashedChunks, PulledChunks, file_chunks, limited
from app.core.errors import TooLarge, Unavailable
from app.core.settings import Settings

LOCAL_CHUNK = 256 << 10
"""Bytes per piece of a file on local disk, which is read directly: measured best."""
PART = 5 << 20
"""Bytes per part of a multi-part upload; smaller objects are uploaded in one conditional request."""
CONCURRENT_PARTS = 2
"""Parts in flight per object; a writer holds these and the next one in memory."""
MAX_WRITERS = 64
"""Objects that one process writes at once; others wait."""
PROBE = "healthz"
UNFINISHED = re.compile(r"#\d+$")
"""End of the name of a file on local disk that is being written; no key has such a name."""


class MissingObject(Exception):
    """There is no object with this key: it was deleted, or never written."""


class KeyTaken(Exception):
    """Another object has this key, which no correct caller can cause."""


class Damaged(Exception):
    """An object does not have the size or the digest of its row."""


@dataclass(frozen=True)
class StoredObject:
    """A written object: its key, its size in bytes and its SHA-256 in hexadecimal."""

    key: str
    size: int
    sha256: str


class Store:
    """One bucket (and prefix), or one folder. Raises `Unavailable` if the store can't be reached or is full.

    The library is called in threads: its own asynchronous calls can abort an interpreter that ends soon after one.
    """

    def __init__(self, backend: ObjectStore, signer: Signer | None = None, folder: Path | None = None) -> None:
        """`folder` is the folder of the objects if the backend is local disk."""
        self._backend, self._signer, self._folder = backend, signer, folder
        # A slow client occupies a thread while it sends; readers must not wait for it.
        self._writers = ThreadPoolExecutor(MAX_WRITERS, "store-writer")

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Open the store of the settings; links are signed for its public address, if it has one."""
        public = settings.store_public_endpoint
        signer = open_backend(settings, public) if public else None
        url = settings.resolved_store_url
        folder = Path(url2pathname(urlsplit(url).path)) if url.startswith("file:") else None
        backend = open_backend(settings, settings.store_endpoint)
        return cls(backend, signer if isinstance(signer, Signer) else None, folder)

    async def upload(self, path: Path, key: str) -> StoredObject:
        """Store a local file."""
        return await self._writing(key, file_chunks(path))

    async def write(self, key: str, chunks: AsyncIterator[bytes], limit: int = sys.maxsize) -> StoredObject:
        """Store a stream of at most `limit` bytes; raises `TooLarge` beyond. Nothing is kept if the stream fails."""
        pulled = PulledChunks(chunks)
        try:
            return await self._writing(key, limited(pulled, limit))
        finally:
            pulled.close()

    async def concatenate(self, keys: Sequence[str], target: str) -> StoredObject:
        """Join objects into a new one. The bytes pass through this process, as not all stores can join objects."""
        # Not `_chunks`: the library can't be called from the iterator that it reads from.
        return await self.write(target, (chunk for key in keys async for chunk in self.stream(key)))

    async def _writing(self, key: str, chunks: Iterator[bytes]) -> StoredObject:
        return await asyncio.get_running_loop().run_in_executor(self._writers, self._put, key, chunks)

    def _put(self, key: str, chunks: Iterator[bytes]) -> StoredObject:
        """Write an object: a small one conditionally, a larger one in parts, which no store creates conditionally.

        Nothing is visible under the key before the last byte is written.
        """
        hashed = HashedChunks(chunks)
        head = hashed.take(PART)
        if len(head) < PART:
            self._create(key, head)
        else:
            with _translated(key):
                self._backend.put(key, chain([head], hashed), chunk_size=PART, max_concurrency=CONCURRENT_PARTS)
        return StoredObject(key, hashed.size, hashed.digest.hexdigest())

    def _create(self, key: str, content: bytes) -> None:
        """Write unless the key is taken. The same content under the key is accepted: a retry after a lost response."""
        with _translated(key):
            try:
                self._backend.put(key, content, mode="create", use_multipart=False)
            except AlreadyExistsError:
                if self._backend.get(key).bytes() != content:
                    raise KeyTaken(key) from None

    async def download(self, key: str, path: Path, sha256: str, size: int) -> None:
        """Fetch an object into a file, which appears only if size and digest are correct; else raises `Damaged`."""
        await asyncio.to_thread(self._download, key, path, sha256, size)

    def _download(self, key: str, path: Path, sha256: str | None, size: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        hashed = HashedChunks(limited(self._chunks(key), size))
        try:
            with temporary.open("wb") as file:
                file.writelines(hashed)
            if hashed.size != size or sha256 not in (None, hashed.digest.hexdigest()):
                raise Damaged(f"object {key} does not have the expected {size} bytes with SHA-256 {sha256}")
            temporary.replace(path)
        except TooLarge as error:
            raise Damaged(f"object {key} has more than the expected {size} bytes") from error
        finally:
            temporary.unlink(missing_ok=True)

    async def sizes(self, folder: str | None = None) -> dict[str, int]:
        """Sizes in bytes of the objects directly in the store, or in a `folder` of it, by name."""
        found = await asyncio.to_thread(self._directly_in, folder)
        return {_last(meta["path"]): meta["size"] for meta in found["objects"]}

    async def folders(self, folder: str) -> set[str]:
        """Names of the folders directly in a folder."""
        found = await asyncio.to_thread(self._directly_in, folder)
        return {_last(prefix.rstrip("/")) for prefix in found["common_prefixes"]}

    def _directly_in(self, folder: str | None) -> Any:
        with _translated("the list"), suppress(MissingObject):
            return obstore.list_with_delimiter(self._backend, folder)
        return {"objects": [], "common_prefixes": []}

    async def keys(self, folder: str, after: str, limit: int) -> list[str]:
        """The next keys of a folder and its subfolders after the key `after`; at most `limit`, in order."""
        return await asyncio.to_thread(self._keys, folder, after, limit)

    def _keys(self, folder: str, after: str, limit: int) -> list[str]:
        with _translated("the list"), suppress(MissingObject):
            batches = obstore.list(self._backend, folder, offset=after or None, chunk_size=1000)
            found = (meta["path"] for batch in batches for meta in batch if meta["path"] > after)
            # A disk lists in no order, so all of it is read; object stores list in order, page by page.
            return nsmallest(limit, found) if self._folder else list(islice(found, limit))
        return []

    async def exists(self, key: str) -> bool:
        """Whether there is an object with this key."""
        return await asyncio.to_thread(self._exists, key)

    def _exists(self, key: str) -> bool:
        with suppress(MissingObject), _translated(key):
            self._backend.head(key)
            return True
        return False

    async def remove_unfinished(self, age_seconds: float) -> int:
        """Delete incomplete files of dead writers on local disk, unmodified for this long; returns their number.

        An object store has its own lifecycle rule for incomplete multipart uploads.
        """
        return await asyncio.to_thread(self._remove_unfinished, age_seconds) if self._folder else 0

    def _remove_unfinished(self, age_seconds: float) -> int:
        assert self._folder is not None
        removed, before = 0, time.time() - age_seconds
        for path in self._folder.rglob("*#*"):
            with suppress(FileNotFoundError):
                if UNFINISHED.search(path.name) and path.is_file() and path.stat().st_mtime < before:
                    path.unlink()
                    removed += 1
        return removed

    async def fetch(self, key: str, path: Path, size: int) -> None:
        """Fetch an external object of unknown digest into a file; raises `Damaged` unless it has the size."""
        await asyncio.to_thread(self._download, key, path, None, size)

    async def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Bytes `start` to `end` (exclusive) in large chunks; raises `MissingObject` before the first."""
        chunks = self._chunks(key, start, end)
        try:
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                yield chunk
        finally:
            chunks.close()

    def _chunks(self, key: str, start: int = 0, end: int | None = None) -> Generator[bytes]:
        if end is not None and end <= start:
            return
        with _translated(key):
            yield from self._read(self._folder / key, start, end) if self._folder else self._fetch(key, start, end)

    def _fetch(self, key: str, start: int, end: int | None) -> Iterator[bytes]:
        options: Any = {"range": {"offset": start} if end is None else (start, end)} if start or end else {}
        yield from self._backend.get(key, options=options).stream(min_chunk_size=CHUNK)

    def _read(self, path: Path, start: int, end: int | None) -> Iterator[bytes]:
        """Read from local disk without the library, whose copies cost three times as much as everything else."""
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            left = end - start if end is not None else sys.maxsize
            while left and (chunk := file.read(min(LOCAL_CHUNK, left))):
                left -= len(chunk)
                yield chunk

    def reader(self, key: str) -> BinaryIO:
        """A seekable file that fetches only the ranges that are read. It blocks: use it in a thread."""
        with _translated(key):
            return io.BufferedReader(_Ranged(self._backend, key), buffer_size=64 << 10)

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; missing ones are ignored."""
        await asyncio.to_thread(self._delete, list(keys))

    def _delete(self, keys: list[str]) -> None:
        for key in keys:
            with _translated(key), suppress(FileNotFoundError):
                self._backend.delete(key)

    async def presign(self, key: str, seconds: float) -> str | None:
        """A link from which anyone may fetch the object for `seconds`; none if the store does not sign links."""
        if self._signer is None:
            return None
        with _translated(key):
            return await asyncio.to_thread(obstore.sign, self._signer, "GET", key, timedelta(seconds=seconds))

    async def check(self) -> None:
        """Write a small object: a full, read-only or unreachable store raises `Unavailable`."""
        with _translated(PROBE):
            await asyncio.to_thread(self._backend.put, PROBE, b"ok", use_multipart=False)


def _last(key: str) -> str:
    return key.rpartition("/")[2]


@contextmanager
def _translated(key: str) -> Iterator[None]:
    """Convert the store's errors to the service's; the original texts have addresses, and are chained for the log."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingObject(key) from error
    except (BaseError, OSError) as error:
        raise Unavailable(
            "store_unavailable", "the object store can't be reached, refuses requests or is full"
        ) from error


class _Ranged(io.RawIOBase):
    """The library's reader as a standard raw file."""

    def __init__(self, backend: ObjectStore, key: str) -> None:
        self._file = obstore.open_reader(backend, key, buffer_size=1 << 20)
        self._key = key

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        with _translated(self._key):
            data = memoryview(self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)
