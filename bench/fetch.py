"""The downloading process: reads one response from a raw socket as fast as possible, and discards it.

`python -m bench.fetch` reads a `Fetch` as JSON from stdin and writes the rate in bytes per second to stdout.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Fetch:
    """A GET whose response must have `size` bytes."""

    port: int
    path: str
    key: str
    size: int


def fetch(wanted: Fetch) -> float:
    """Bytes per second, from the connection to the last byte, measured in a separate process."""
    command = [sys.executable, "-m", "bench.fetch"]
    done = subprocess.run(command, input=json.dumps(asdict(wanted)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the download failed: {done.stderr[-2000:]}")
    return float(done.stdout)


def _rate(wanted: Fetch) -> float:
    request = f"GET {wanted.path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {wanted.key}\r\n\r\n"
    buffer = memoryview(bytearray(BUFFER_BYTES))
    begin = time.perf_counter()
    with socket.create_connection(("127.0.0.1", wanted.port)) as connection:
        connection.sendall(request.encode())
        left = wanted.size - _read_head(connection, wanted.size)
        while left > 0 and (count := connection.recv_into(buffer)):
            left -= count
    if left:
        raise RuntimeError(f"{left} bytes are missing")
    return wanted.size / (time.perf_counter() - begin)


def _read_head(connection: socket.socket, size: int) -> int:
    """Read up to the end of the head; returns the number of bytes of the body that were read with it."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(4096)
    head, _, body = received.partition(b"\r\n\r\n")
    expected = f"content-length: {size}".encode()
    if head.split()[1] != b"200" or expected not in head.lower():
        raise RuntimeError(f"not the whole file: {head.decode(errors='replace')}")
    return len(body)


if __name__ == "__main__":
    print(_rate(Fetch(**json.load(sys.stdin))))
