"""Time from a kill to the first step of the next attempt: of a trainer, and of a supervisor with or without a restart.

The clock starts right before the SIGKILL and stops when a GET first shows a step of the next attempt, so all hops are
in it: that the death is noticed, the way through the queue, staging, and a trainer that goes on from its checkpoint.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.rows import Row, Target
from bench.servers import PATIENCE_SECONDS, ROOT, Embedded, Service, await_rest, await_that, started
from bench.start import await_step, tiny_job
from examples.digits import write_digits
from stillhouse import Client

LEASE_SECONDS = 15.0
NOTICE_SECONDS = 2.0
"""Time that the service adds to the lease of a lost supervisor: as much as for a killed trainer."""


@dataclass(frozen=True)
class Size:
    """Number of killed processes of each kind."""

    trainers: int = 20
    supervisors: int = 10
    machines: int = 5


FULL, SHORT = Size(), Size(trainers=1, supervisors=1, machines=1)


class WithLeases(Embedded):
    """`stillhouse up` with the leases of the figures."""

    def environment(self) -> dict[str, str]:
        return super().environment() | _leases()


class ApiWithLeases(Service):
    """`stillhouse serve` with the same leases."""

    def environment(self) -> dict[str, str]:
        return super().environment() | _leases()


def _leases() -> dict[str, str]:
    return {"STILLHOUSE_LEASE_SECONDS": str(LEASE_SECONDS), "STILLHOUSE_WORKER_TICK_FILE": ""}


def measure(size: Size) -> Iterator[Row]:
    """A row for every kind of death."""
    with started(WithLeases) as service, tempfile.TemporaryDirectory() as folder, service.client() as client:
        data = client.upload(write_digits(Path(folder)).few).id
        killed = [_recover(client, data, lambda: _trainer_of(service.worker())) for _ in range(size.trainers)]
        yield _row("killed trainer", killed, 2.0)
        killed = [_recover(client, data, service.worker) for _ in range(size.supervisors)]
        yield _row("killed supervisor, started again by `stillhouse up`", killed, LEASE_SECONDS)
    with started(ApiWithLeases) as api, tempfile.TemporaryDirectory() as folder, api.client() as client:
        data = client.upload(write_digits(Path(folder)).few).id
        killed = [_lose_a_machine(api, client, data) for _ in range(size.machines)]
    what = f"supervisor that is gone, leases of {LEASE_SECONDS:g} s, another worker waits"
    yield _row(what, killed, LEASE_SECONDS + NOTICE_SECONDS)


def _row(what: str, seconds: list[float], bound: float) -> Row:
    note = f"p50 of {len(seconds)}, max {max(seconds):.2f} s"
    return Row(what, statistics.median(seconds), "s", note=note, target=Target("figure", "under", bound))


def _recover(client: Client, data: str, victim: Callable[[], psutil.Process]) -> float:
    """Run a job, kill, and wait until it continues; returns the seconds."""
    job_id = client.submit(tiny_job(data)).id
    await_step(client, job_id)
    process = await_that(lambda: _found(victim))
    _await_spare(process)
    attempt = client.job(job_id).attempt
    begin = time.monotonic()
    process.kill()
    _await_attempt(client, job_id, attempt)
    seconds = time.monotonic() - begin
    client.cancel(job_id)
    client.wait(job_id, timeout_seconds=PATIENCE_SECONDS)
    return seconds


def _found(victim: Callable[[], psutil.Process]) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess, ValueError, StopIteration):
        return victim()
    return None


def _trainer_of(worker: psutil.Process) -> psutil.Process:
    """The working trainer: the oldest, because the spare was started after it."""
    return min(worker.children(), key=lambda child: child.create_time())


def _await_spare(process: psutil.Process) -> None:
    """Wait until the next trainer is warm, which is the usual case unless jobs follow within seconds."""
    worker = process if len(process.children()) else process.parent()
    assert worker is not None
    spare = await_that(lambda: max(worker.children(), key=lambda it: it.create_time()) if _pair(worker) else None)
    for _ in range(3):  # a busy machine may delay it
        await_rest(spare)


def _pair(worker: psutil.Process) -> bool:
    return len(worker.children()) == 2


def _await_attempt(client: Client, job_id: str, dead: int) -> None:
    """Wait until an attempt after the dead one has taken a step."""

    def look() -> bool | None:
        job = client.job(job_id)
        begun = [phase.started_at for phase in job.phases if phase.attempt > dead and phase.phase == "training"]
        reported = job.progress.progress_at
        return True if begun and reported and reported >= begun[0] else None

    await_that(look)


def _lose_a_machine(api: Service, client: Client, data: str) -> float:
    """Kill the worker with a job while another one waits, which has separate folders as on another machine."""
    with ExitStack() as opened:
        workers = [opened.enter_context(_worker(api)) for _ in range(2)]
        spares = [await_that(lambda one=one: next(iter(one.children()), None)) for one in workers]
        for spare in spares:
            await_rest(spare)
        job_id = client.submit(tiny_job(data)).id
        await_step(client, job_id)
        busy = await_that(lambda: next((worker for worker in workers if _pair(worker)), None))
        attempt = client.job(job_id).attempt
        begin = time.monotonic()
        busy.kill()
        _await_attempt(client, job_id, attempt)
        seconds = time.monotonic() - begin
        client.cancel(job_id)
        client.wait(job_id, timeout_seconds=PATIENCE_SECONDS)
    return seconds


@contextmanager
def _worker(api: Service) -> Iterator[psutil.Process]:
    settings = api.settings
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        places = {"STILLHOUSE_DATA_DIR": folder, "STILLHOUSE_STORE_URL": settings.resolved_store_url}
        env = {**os.environ, **api.environment(), **places}
        process = subprocess.Popen([sys.executable, "-m", "worker"], cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()
