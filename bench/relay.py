"""Cost of the supervisor and its relay of metrics: the CPU time of the worker's process while a trainer reports."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from app.core.settings import Settings
from bench.rows import Row, Target
from bench.servers import PATIENCE_SECONDS, ROOT, Service, await_rest, cpu_share, started
from bench.start import await_step, tiny_job
from examples.digits import write_digits
from stillhouse import Client
from worker.supervisor.context import open_context
from worker.supervisor.poller import poll, stop_on_signals

UNIT = "% of wall time"


@dataclass(frozen=True)
class Size:
    """Length of one measurement."""

    seconds: float = 20.0


FULL, SHORT = Size(), Size(seconds=0.5)


def measure(size: Size) -> Iterator[Row]:
    """Rows for a worker that relays 100 metrics a second, all alone or ten at a time, and for one that waits."""
    with started(Service) as service, service.client() as client, tempfile.TemporaryDirectory() as folder:
        spec = tiny_job(client.upload(write_digits(Path(folder)).few).id)
        waiting, alone = _relaying(service, client, spec, size.seconds, messages=100, values=1)
        _, together = _relaying(service, client, spec, size.seconds, messages=10, values=10)
    what = "CPU time of the supervisor at 100 metrics a second"
    target = Target("figure", "under", 2.0)
    yield Row(f"{what}, one per message", 100 * alone, UNIT, target=target)
    yield Row(f"{what}, ten per message as the trainer sends them", 100 * together, UNIT, target=target)
    yield Row("CPU time of an idle worker", 100 * waiting, UNIT)


def _relaying(
    service: Service, client: Client, spec: dict[str, Any], seconds: float, messages: int, values: int
) -> tuple[float, float]:
    """Shares of a core that a worker takes while it waits, and while it relays."""
    with _worker(service, messages, values) as worker:
        waiting = cpu_share(await_rest(worker), seconds / 4)
        job_id = client.submit(spec).id
        before = await_step(client, job_id)
        relaying = cpu_share(worker, seconds)
        steps = client.job(job_id).progress.step - before
        client.cancel(job_id)
    if steps < 0.9 * messages * max(0.0, seconds - 1):
        raise RuntimeError(f"little work is no merit: only {steps} steps came through in {seconds} s")
    return waiting, relaying


@contextmanager
def _worker(service: Service, messages: int, values: int) -> Iterator[psutil.Process]:
    """A worker as `python -m worker`, except that its trainers only report."""
    command = [sys.executable, "-m", "bench.relay", str(messages), str(values)]
    environment = {**service.environment(), "PYTHONPATH": str(ROOT)}
    worker = psutil.Popen(command, env=environment, cwd=ROOT)
    try:
        yield worker
    finally:
        worker.terminate()
        worker.wait(PATIENCE_SECONDS)


async def _serve(messages: str, values: str) -> None:
    settings = Settings()
    trainer = (sys.executable, "-m", "bench.trainer", messages, values)
    async with open_context(settings, settings.queues, trainer) as context:
        stop_on_signals(context.stop)
        await poll(context)


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
