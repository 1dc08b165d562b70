"""Downloading a large artifact from the local store, against plain servers of the same file."""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from app.core.clock import now
from app.core.database import Database
from app.core.ids import new_id
from app.core.store import Store
from app.jobs.tables import ArtifactRow
from bench.fetch import Fetch, fetch
from bench.fill import fill, job_id
from bench.rows import Row, Target
from bench.servers import Service, StandardLibrary, StaticFiles, started

NAME = "model.safetensors"
MB = 1_000_000


@dataclass(frozen=True)
class Size:
    """Sizes of the measurement."""

    bytes: int = 200 * MB
    rounds: int = 15


FULL, SHORT = Size(), Size(bytes=3 * MB, rounds=1)


def measure(size: Size) -> Iterator[Row]:
    """One row: the service's rate against that of the faster plain server."""
    with ExitStack() as stack:
        service = stack.enter_context(started(Service))
        plain = [stack.enter_context(started(kind)) for kind in (StandardLibrary, StaticFiles)]
        stored = asyncio.run(_publish(service, size.bytes))
        for server in plain:
            (server.content / NAME).hardlink_to(stored)  # all share one file in the system's cache
        address = f"/v1/jobs/{job_id(0)}/artifacts/{NAME}"
        fetches = [Fetch(service.port, address, service.key, size.bytes)]
        fetches += [Fetch(server.port, f"/{NAME}", "", size.bytes) for server in plain]
        rounds = [[fetch(one) / MB for one in fetches] for _ in range(size.rounds)]
    yield _row(size, *map(statistics.median, zip(*rounds, strict=True)))


def _row(size: Size, ours: float, library: float, static: float) -> Row:
    others = f"http.server {library:,.0f}, Starlette {static:,.0f}"
    what = f"download an artifact of {size.bytes / MB:g} MB, local store"
    faster, name = max((library, "http.server"), (static, "Starlette StaticFiles"))
    return Row(what, ours, "MB/s", faster, name, others, Target("ratio", "at least", 0.7))


def _write(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for start in range(0, size, MB):
            file.write(os.urandom(min(MB, size - start)))


async def _publish(service: Service, size: int) -> Path:
    """Create an artifact of a succeeded job; returns the path of its file in the store."""
    path = service.folder / NAME
    _write(path, size)
    await fill(service.settings.resolved_database_url, 1)
    stored = await Store.from_settings(service.settings).upload(path, f"bench/{NAME}")
    database = Database(service.settings.resolved_database_url)
    row = {"name": NAME, "media_type": "application/octet-stream", "attempt": 1, "token": 1}
    async with database.write() as session:
        place = {"key": stored.key, "size": stored.size, "sha256": stored.sha256}
        session.add(ArtifactRow(id=new_id("art"), job_id=job_id(0), created_at=now(), **row, **place))
    await database.close()
    return Path(urlsplit(service.settings.resolved_store_url).path) / stored.key
