"""Memory of the API's process and the time that importing it takes."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from bench.fill import fill, ids
from bench.rows import Row, Target
from bench.servers import ROOT, Service, started

MB = 1_000_000
REFERENCE = "fastapi, sqlalchemy.ext.asyncio"
IMPORT = """
import json, sys, time
begin = time.perf_counter()
import {modules}
seconds = time.perf_counter() - begin
print(json.dumps([seconds, sum(name.partition(".")[0] == "torch" for name in sys.modules)]))
"""


@dataclass(frozen=True)
class Size:
    """Sizes of the measurement."""

    requests: int = 1000
    imports: int = 7


FULL, SHORT = Size(), Size(requests=10, imports=1)


def measure(size: Size) -> Iterator[Row]:
    """Rows for memory, import time and torch."""
    yield from _memory(size)
    rounds = [(_import("app.main"), _import(REFERENCE)) for _ in range(size.imports)]
    ours, reference = (statistics.median(seconds for seconds, _ in column) for column in zip(*rounds, strict=True))
    name = f"{REFERENCE} alone"
    yield Row("import app.main", ours, "s", reference, name, target=Target("figure", "under", 1.5))
    torch = rounds[0][0][1]
    yield Row("torch modules loaded by it", torch, "modules", target=Target("figure", "under", 1))


def _memory(size: Size) -> Iterator[Row]:
    under = Target("figure", "under", 150)
    with started(Service) as service:
        yield Row("memory of the idle API process", _resident(service), "MB", target=under)
        asyncio.run(fill(service.settings.resolved_database_url, 1000))
        _request(service, size.requests)
        yield Row(f"memory after {size.requests:,} requests", _resident(service), "MB", target=under)


def _resident(service: Service) -> float:
    return float(service.process().memory_info().rss) / MB


def _request(service: Service, requests: int) -> None:
    """Jobs, lists of jobs and the catalogue, in turn."""
    jobs = ids(1000)
    headers = {"Authorization": f"Bearer {service.key}"}
    with httpx.Client(base_url=service.url, headers=headers) as client:
        for number in range(requests):
            path = (f"jobs/{jobs[number % len(jobs)]}", "jobs", "catalog")[number % 3]
            client.get(f"/v1/{path}").raise_for_status()


def _import(modules: str) -> tuple[float, int]:
    """Seconds of an import in a new process, and the number of torch modules that it loads."""
    command = [sys.executable, "-c", IMPORT.format(modules=modules)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, torch = json.loads(done.stdout)
    return seconds, torch
