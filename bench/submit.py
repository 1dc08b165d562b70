"""Submitting jobs to `stillhouse up`, compared with the rate of commits of a plain program to SQLite on the same
disk."""

from __future__ import annotations

import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.load import Load, apply
from bench.rows import Row, Target
from bench.servers import Embedded, await_rest, started
from bench.start import tiny_job
from examples.digits import write_digits

SYNCED = ("journal_mode=WAL", "synchronous=FULL")
"""The service's mode of writing accepted jobs: a commit is on the disk when it returns."""


@dataclass(frozen=True)
class Size:
    """Sizes of the measurement."""

    connections: int = 64
    rounds: int = 5
    seconds: float = 3.0


FULL, SHORT = Size(), Size(connections=4, rounds=1, seconds=0.3)


def measure(size: Size) -> Iterator[Row]:
    """A row for many clients that submit at once, and one for a single client."""
    with started(Embedded) as service, service.client() as client, tempfile.TemporaryDirectory() as folder:
        # On a queue that no worker of this machine serves: submission is measured, not training.
        job = tiny_job(client.upload(write_digits(Path(folder)).few).id) | {"resources": {"queue": "gpu"}}
        await_rest(service.process())
        for connections in (size.connections, 1):
            load = Load(service.port, ["/v1/jobs"], service.key, connections, size.seconds, body=json.dumps(job))
            pairs = [(commits_per_second(service.folder, size.seconds / 2), apply(load)) for _ in range(size.rounds)]
            bare = statistics.median(rate for rate, _ in pairs)
            found = statistics.median(result.per_second for _, result in pairs)
            p99 = statistics.median(result.p99_ms for _, result in pairs)
            target = Target("figure", "at least", 200.0) if connections > 1 else None
            what = f"submissions to `stillhouse up` by {connections} client{'s' if connections > 1 else ''}"
            yield Row(what, found, "/s", bare, "bare commits", f"p99 {p99:.0f} ms", target)


def commits_per_second(folder: Path, seconds: float) -> float:
    """Rate of transactions that insert one row, one after the other, in a new database in this folder."""
    path = folder / "bare.db"
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in SYNCED:
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("CREATE TABLE jobs (id INTEGER PRIMARY KEY, spec TEXT)")
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO jobs (spec) VALUES (?)", ("x" * 2000,))
        connection.execute("COMMIT")
        count += 1
    rate = count / (time.perf_counter() - begin)
    connection.close()
    return rate
