"""TCP ports for servers that must be told theirs before they start."""

from __future__ import annotations

import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

PORTS = range(20_000, 30_000)
"""Below those that systems hand out by themselves (from 32768 on Linux, 49152 elsewhere): no connection takes one."""


@contextmanager
def reserved_port() -> Iterator[int]:
    """A free port of the loopback interface that no other test of this machine gets meanwhile."""
    locks = Path(tempfile.gettempdir()) / "stillhouse-test-ports"
    locks.mkdir(exist_ok=True)
    for port in random.sample(PORTS, len(PORTS)):
        lock = FileLock(locks / str(port), blocking=False)
        with suppress(Timeout), lock:
            if _is_free(port):
                yield port
                return
    raise RuntimeError("no port is free")


@contextmanager
def silent_port() -> Iterator[int]:
    """A port of the loopback interface that refuses connections: it is bound, and nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
