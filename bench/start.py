"""Time from POST to the first optimizer step, in the service of `stillhouse up`, with a real trainer.

The clock starts before the request is sent and stops when a GET first shows a step, so all hops are in it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.rows import Row, Target
from bench.servers import PATIENCE_SECONDS, Embedded, await_rest, await_that, started
from examples.digits import write_digits
from stillhouse import Client


@dataclass(frozen=True)
class Size:
    """Number of started jobs."""

    warm: int = 20
    cold: int = 5


FULL, SHORT = Size(), Size(warm=1, cold=1)


def measure(size: Size) -> Iterator[Row]:
    """Rows for jobs with a warm trainer, and for jobs without."""
    with started(Embedded) as service, service.client() as client, tempfile.TemporaryDirectory() as folder:
        data = client.upload(write_digits(Path(folder)).few)
        spec = tiny_job(data.id)
        warm = [_start(client, spec, service, spare=True) for _ in range(size.warm)]
        cold = [_start(client, spec, service, spare=False) for _ in range(size.cold)]
    yield _row("POST to first optimizer step, embedded, warm", warm, Target("figure", "under", 1.0))
    yield _row("the same with no spare trainer", cold, None)


def tiny_job(data: str) -> dict[str, Any]:
    """A job on the digits that begins at once and lasts for minutes."""
    return {
        "data": {"train": data, "classes": 10},
        "student": {"architecture": "mlp", "hidden": [16]},
        "recipe": {"losses": [{"kind": "cross-entropy"}], "epochs": 10_000, "batch_size": 32},
        "evaluation": {"every_epochs": 10_000},
        "seed": 0,
    }


def _row(what: str, seconds: Sequence[float], target: Target | None) -> Row:
    p95 = sorted(seconds)[round(0.95 * (len(seconds) - 1))]
    note = f"p50 of {len(seconds)}, p95 {p95:.2f} s"
    return Row(what, statistics.median(seconds), "s", note=note, target=target)


def _start(client: Client, spec: dict[str, Any], service: Embedded, *, spare: bool) -> float:
    """Run one job up to its first step; returns the seconds."""
    waiting = _await_spare(service)
    if not spare:
        waiting.kill()
    begin = time.monotonic()
    job_id = client.submit(spec).id
    await_step(client, job_id)
    seconds = time.monotonic() - begin
    client.cancel(job_id)
    client.wait(job_id, timeout_seconds=PATIENCE_SECONDS)
    return seconds


def await_step(client: Client, job_id: str) -> int:
    """Wait until a job reports a step; returns its number."""
    return await_that(lambda: client.job(job_id).progress.step or None)


def _await_spare(service: Embedded) -> psutil.Process:
    """The trainer that waits for a job."""
    return await_rest(await_that(lambda: next(_spares(service), None)))


def _spares(service: Embedded) -> Iterator[psutil.Process]:
    for child in service.worker().children():
        with suppress(psutil.NoSuchProcess):
            if "--spare" in child.cmdline():
                yield child
