"""The load process: many keep-alive connections, each sending its next request after the last response.

`python -m bench.load` reads a `Load` as JSON from stdin and writes a `Result` to stdout. Requests are made beforehand
and answers are only counted, so that on two cores the client does not slow down the server that it measures.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple, cast

import uvloop


@dataclass(frozen=True)
class Load:
    """Requests for `paths`, distributed over the connections, for some seconds after a warm-up."""

    port: int
    paths: Sequence[str]
    key: str
    connections: int
    seconds: float
    warm_seconds: float = 0.3
    body: str = ""
    """JSON to post; empty: the requests are GETs."""


class Result(NamedTuple):
    """Results of a load; a response other than 200 or 201 raises instead."""

    per_second: float
    p50_ms: float
    p99_ms: float


def apply(load: Load) -> Result:
    """Run the load in a separate process."""
    command = [sys.executable, "-m", "bench.load"]
    done = subprocess.run(command, input=json.dumps(asdict(load)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the load process failed: {done.stderr[-2000:]}")
    return Result(*json.loads(done.stdout))


class Connection(asyncio.Protocol):
    """One connection, with one request at a time."""

    def __init__(self, requests: list[bytes], latencies: list[tuple[float, float]], failed: asyncio.Event) -> None:
        self._requests, self._latencies, self._failed = requests, latencies, failed
        self._next, self._sent, self._received = 0, 0.0, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not _is_whole(self._received):
            return
        if not self._received.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")):
            self._failed.set()
        moment = time.perf_counter()
        self._latencies.append((moment, moment - self._sent))
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._failed.set()

    def _send(self) -> None:
        self._received = b""
        self._sent = time.perf_counter()
        self._transport.write(self._requests[self._next])
        self._next = (self._next + 1) % len(self._requests)


def _is_whole(answer: bytes) -> bool:
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = answer[:end].lower()
    length = head.index(b"content-length: ") + 16
    return len(answer) >= end + 4 + int(head[length:].split(b"\r", 1)[0])


async def run(load: Load) -> Result:
    """Keep all connections busy; raises `RuntimeError` if a request fails."""
    latencies: list[tuple[float, float]] = []
    failed = asyncio.Event()
    requests = [_request(load, path) for path in load.paths]
    loop = asyncio.get_running_loop()
    for number in range(load.connections):
        mine = requests[number % len(requests) :: load.connections] or requests
        connect = partial(Connection, mine, latencies, failed)
        await loop.create_connection(connect, "127.0.0.1", load.port)
    begin = time.perf_counter() + load.warm_seconds
    measured: list[float] = []
    while not measured:  # a busy machine may need more time
        await _until(time.perf_counter() + load.warm_seconds + load.seconds, failed)
        measured = [taken for moment, taken in latencies if moment > begin]
    return _summary(measured, time.perf_counter() - begin)


async def _until(end: float, failed: asyncio.Event) -> None:
    """Wait; raises `RuntimeError` on the first failure."""
    try:
        await asyncio.wait_for(failed.wait(), end - time.perf_counter())
    except TimeoutError:
        return
    raise RuntimeError("a request was not answered with 200 or 201")


def _request(load: Load, path: str) -> bytes:
    body = load.body.encode()
    head = [f"{'POST' if body else 'GET'} {path} HTTP/1.1", "Host: bench", f"Authorization: Bearer {load.key}"]
    head += [f"Content-Length: {len(body)}", "Content-Type: application/json"] if body else []
    return "\r\n".join([*head, "Accept: application/json", "\r\n"]).encode() + body


def _summary(latencies: list[float], seconds: float) -> Result:
    ordered = sorted(latencies)
    p50, p99 = (ordered[int(share * (len(ordered) - 1))] * 1000 for share in (0.50, 0.99))
    return Result(len(ordered) / seconds, p50, p99)


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(Load(**json.load(sys.stdin))))))
