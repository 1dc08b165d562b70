"""What a process writes, read for so long and no longer: a process that stays silent fails its test with what it wrote
before."""

from __future__ import annotations

import asyncio
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from typing import IO, AnyStr

READ_SECONDS = 120.0
"""Longest wait, on a machine with other work."""


def first_line(
    stream: IO[AnyStr] | None, wanted: Callable[[AnyStr], bool] = bool, seconds: float = READ_SECONDS
) -> AnyStr:
    """The first line of a pipe that is `wanted`; what follows can be read from the pipe afterwards.

    Raises: AssertionError with what was read so far when there is none in time, or the pipe is closed before.
    """
    assert stream is not None
    lines: queue.SimpleQueue[AnyStr | None] = queue.SimpleQueue()
    threading.Thread(target=_pass_on, args=(stream, wanted, lines), daemon=True).start()
    read: list[AnyStr] = []
    deadline = time.monotonic() + seconds
    try:
        while line := lines.get(timeout=max(0.0, deadline - time.monotonic())):
            read.append(line)
            if wanted(line):
                return line
        raise AssertionError(f"the pipe was closed; read so far: {read}")
    except queue.Empty:
        raise AssertionError(f"nothing more in {seconds} s; read so far: {read}") from None


def _pass_on(stream: IO[AnyStr], wanted: Callable[[AnyStr], bool], lines: queue.SimpleQueue[AnyStr | None]) -> None:
    while line := stream.readline():
        lines.put(line)
        if wanted(line):
            return
    lines.put(None)


def all_of(
    process: subprocess.Popen[AnyStr], given: AnyStr | None = None, seconds: float = READ_SECONDS
) -> tuple[AnyStr, AnyStr]:
    """All that a process writes until its end, as `communicate` returns it, which is `given` something to read.

    Raises: AssertionError with what was read so far when it does not end in time; the process is killed.
    """
    try:
        return process.communicate(given, timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"no end in {seconds} s; read so far: {process.communicate()}") from None


async def stderr_of(process: asyncio.subprocess.Process, seconds: float = READ_SECONDS) -> bytes:
    """All that a process writes to stderr, which nobody else reads, until its end.

    Raises: AssertionError with what was read so far when it does not end in time.
    """
    assert process.stderr is not None
    read = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while chunk := await process.stderr.read(65_536):
                read += chunk
            await process.wait()
    except TimeoutError:
        raise AssertionError(f"no end in {seconds} s; read so far: {bytes(read)!r}") from None
    return bytes(read)
