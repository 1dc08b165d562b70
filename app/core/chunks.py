"""Content in chunks of bytes: counted, digested, limited, and handed from an event loop to a thread."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

from app.core.errors import TooLarge

CHUNK = 1 << 20
"""Bytes per piece of a stream: large enough to hide the hops between threads, small enough for many at once."""


class HashedChunks:
    """Counts and digests chunks as they are iterated."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self.size, self.digest = 0, hashlib.sha256()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        chunk = next(self._chunks)
        self.size += len(chunk)
        self.digest.update(chunk)
        return chunk

    def take(self, size: int) -> bytes:
        """The first chunks, until they have at least `size` bytes."""
        head = bytearray()
        while len(head) < size and (chunk := next(self, None)) is not None:
            head += chunk
        return bytes(head)


def file_chunks(path: Path) -> Iterator[bytes]:
    """The content of a local file."""
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            yield chunk


class PulledChunks:
    """Chunks that an event loop receives, iterated by a thread that waits for each."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks, self._loop = chunks, asyncio.get_running_loop()
        self._closed = False
        self._task: asyncio.Task[Any] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        chunk = asyncio.run_coroutine_threadsafe(self._following(), self._loop).result()
        if chunk is None:
            raise StopIteration
        return chunk

    async def _following(self) -> bytes | None:
        if self._closed:
            raise asyncio.CancelledError
        self._task = asyncio.current_task()
        return await anext(self._chunks, None)

    def close(self) -> None:
        """Free the thread that waits for the next chunk. Called by the event loop."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()


def limited(chunks: Iterator[bytes], limit: int) -> Iterator[bytes]:
    """The chunks, with at most `limit` bytes in total; raises `TooLarge` beyond."""
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise TooLarge("too_large", f"has more than {limit} bytes")
        yield chunk
