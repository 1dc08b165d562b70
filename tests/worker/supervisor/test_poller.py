"""The polling worker as a process: its life, its stop, and the deaths that may befall it."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy.exc import OperationalError

from app.core.database import Database
from app.core.settings import Settings
from app.jobs.reaper import Reaper
from app.jobs.tables import CheckpointRow
from tests.app.jobs.builders import let_backoff_pass, let_lease_run_out, load
from tests.servers.output import stderr_of
from tests.worker.supervisor.stage import (
    ROOT,
    alive,
    children,
    eventually,
    furnish,
    has_torch,
    process_environment,
    settings_for,
    submit,
    until_dead,
    until_status,
    until_step,
    worker,
)
from worker.supervisor.attempt import run_next
from worker.supervisor.poller import poll

TRAIN = ("start", "phase=training")


@asynccontextmanager
async def polling(
    settings: Settings, *acts: str, arguments: tuple[str, ...] = (), **env: str
) -> AsyncIterator[Process]:
    """A worker's process; with no acts, its trainers are real."""
    module = "tests.worker.supervisor.scripted_worker" if acts else "worker"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, cwd=ROOT, env=process_environment(settings, *acts, **env), stderr=PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def one_child(pid: int) -> int:
    """The only child of a process, once there is one."""

    async def born() -> bool:
        return len(children(pid)) == 1

    await eventually(born)
    return children(pid)[0]


async def test_a_polling_worker_does_one_job_after_the_other(settings: Settings, database: Database) -> None:
    jobs = [await submit(database) for _ in range(3)]
    async with polling(settings, *TRAIN, "steps=2", "finish") as process:
        for job_id in jobs:
            assert (await until_status(database, job_id, "succeeded")).attempt == 1
        process.terminate()
        assert await process.wait() == 0
    assert not list(settings.scratch_dir.glob("worker-*")), "a worker that stops leaves nothing behind"


async def test_sigterm_saves_the_job_and_hands_it_back(settings: Settings, database: Database) -> None:
    job_id = await submit(database)
    async with polling(settings, *TRAIN, "work_until_stop") as process:
        await until_step(database, job_id, 2)
        trainers = children(process.pid)
        process.terminate()
        assert await process.wait() == 0
    job = await load(database, job_id)
    assert (job.status, job.failures) == ("queued", 0)
    async with database.read() as session:
        checkpoint = await session.get(CheckpointRow, job.checkpoint_id)
    assert checkpoint is not None
    assert checkpoint.step == job.step >= 2
    assert not any(map(alive, trainers))


async def test_a_second_signal_ends_a_worker_that_waits_for_its_trainer(settings: Settings, database: Database) -> None:
    job_id = await submit(database)
    async with polling(settings, *TRAIN, "steps=1", "await_stop", "steps=1", "hang") as process:
        await until_step(database, job_id, 1)
        trainers = children(process.pid)
        process.send_signal(signal.SIGINT)
        await until_step(database, job_id, 2)
        process.terminate()
        assert await process.wait() == -signal.SIGTERM
    await until_dead(*trainers)


async def test_a_killed_worker_takes_its_trainers_with_it_and_the_job_goes_on(
    settings: Settings, database: Database
) -> None:
    job_id = await submit(database)
    async with polling(settings, *TRAIN, "steps=3", "save", "steps=1", "hang") as process:
        await until_step(database, job_id, 4)
        await eventually(lambda: has_checkpoint(database, job_id))
        trainers = children(process.pid)
        process.kill()
        await process.wait()
    assert trainers
    await until_dead(*trainers)
    await let_lease_run_out(database, job_id)
    await reap(database)
    await let_backoff_pass(database, job_id)
    async with polling(settings, *TRAIN, "steps=1", "finish") as process:
        job = await until_status(database, job_id, "succeeded")
        assert (job.attempt, job.step) == (2, 4), "it went on from the checkpoint at step 3"
        (own,) = settings.scratch_dir.glob("worker-*")
        assert own.stat().st_mtime, "what the dead one left was swept"


async def test_a_worker_that_is_started_again_gives_back_what_the_dead_one_held(
    settings: Settings, database: Database
) -> None:
    """No lease runs out and no reaper runs: the lock of the dead one's folder tells."""
    patient = settings.model_copy(update={"lease_seconds": 4000.0})
    job_id = await submit(database, resources={"max_attempts": 1})
    async with polling(patient, *TRAIN, "steps=3", "hang") as process:
        await until_step(database, job_id, 3)
        process.kill()
        await process.wait()
    async with polling(patient, *TRAIN, "steps=1", "finish"):
        job = await until_status(database, job_id, "succeeded")
    assert (job.attempt, job.failures, job.interruptions) == (2, 0, 1)


async def test_a_worker_that_starts_beside_a_live_one_takes_nothing_from_it(
    settings: Settings, database: Database
) -> None:
    job_id = await submit(database)
    async with polling(settings, *TRAIN, "work_until_stop"):
        await until_step(database, job_id, 2)
        async with worker(settings, *TRAIN):
            step = (await load(database, job_id)).step
            job = await until_step(database, job_id, step + 2)
    assert (job.status, job.attempt) == ("running", 1)


async def test_a_worker_that_was_frozen_past_its_lease_wakes_up_to_nothing(
    settings: Settings, database: Database
) -> None:
    """Its trainer trained on meanwhile; none of that may reach the job, which another attempt has finished."""
    job_id = await submit(database)
    async with polling(settings, *TRAIN, "work_until_stop") as frozen:
        await until_step(database, job_id, 2)
        trainers = children(frozen.pid)
        await freeze(frozen, database, job_id)
        await reap(database)
        await let_backoff_pass(database, job_id)
        async with worker(settings, *TRAIN, "steps=1", "finish") as other:
            await run_next(other, job_id)
        finished = await load(database, job_id)
        frozen.send_signal(signal.SIGCONT)
        await until_dead(trainers[0])
        frozen.terminate()
        assert await frozen.wait() == 0
    after = await load(database, job_id)
    assert (after.status, after.step, after.last_seq) == ("succeeded", 1, finished.last_seq)
    assert after.checkpoint_id is None


async def freeze(process: Process, database: Database, job_id: str) -> None:
    """Stop a worker at a moment in which it holds no lock of the database, and let its lease run out."""
    while True:
        process.send_signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(2):
                return await let_lease_run_out(database, job_id)
        except (TimeoutError, OperationalError):
            process.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.05)


async def has_checkpoint(database: Database, job_id: str) -> bool:
    return (await load(database, job_id)).checkpoint_id is not None


async def reap(database: Database) -> None:
    """Hand the jobs with expired leases back."""
    await Reaper(database, "test", 5.0, 0.001).sweep()


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
async def test_a_worker_stops_in_order_when_its_parent_is_killed(settings: Settings, database: Database) -> None:
    job_id = await submit(database)
    starter = (
        "import os, subprocess, sys, time\n"
        "worker = 'tests.worker.supervisor.scripted_worker'\n"
        "subprocess.Popen([sys.executable, '-m', worker, '--parent', str(os.getpid())])\n"
        "time.sleep(600)"
    )
    environment = process_environment(settings, *TRAIN, "work_until_stop")
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", starter, cwd=ROOT, env=environment)
    child = await one_child(parent.pid)
    await until_step(database, job_id, 2)
    trainers = children(child)
    parent.kill()
    await parent.wait()
    await until_dead(child, *trainers)
    job = await load(database, job_id)
    assert (job.status, job.failures) == ("queued", 0)
    assert job.checkpoint_id is not None


async def test_a_worker_whose_parent_is_gone_already_does_not_start(settings: Settings) -> None:
    async with polling(settings, "start", arguments=("--parent", "1")) as process:
        assert await process.wait() == 1


async def test_the_worker_serves_only_its_queues(settings: Settings, database: Database) -> None:
    cpu = await submit(database, resources={"queue": "cpu"})
    anywhere = await submit(database)
    async with polling(settings, *TRAIN, "finish", arguments=("--queues", "any")):
        await until_status(database, anywhere, "succeeded")
    assert (await load(database, cpu)).status == "queued"


async def test_a_queue_that_does_not_exist_is_refused(settings: Settings) -> None:
    async with polling(settings, "start", arguments=("--queues", "any,gpus")) as process:
        stderr = await stderr_of(process)
    assert process.returncode == 2
    assert b"'any', 'cpu' or 'gpu'" in stderr
    assert b"Traceback" not in stderr


async def test_a_worker_for_gpus_on_a_machine_without_says_so(settings: Settings, tmp_path: Path) -> None:
    async with polling(settings, "start", arguments=("--queues", "gpu"), CUDA_VISIBLE_DEVICES="") as process:
        stderr = await stderr_of(process)
    assert process.returncode == 1
    assert b"shows no GPU that CUDA_VISIBLE_DEVICES allows" in stderr
    assert b"Traceback" not in stderr


async def test_the_tick_file_shows_that_the_worker_lives(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    tick = tmp_path / "tick"
    ticking = settings.model_copy(update={"worker_tick_file": tick})

    async def ticks_after(moment: int) -> bool:
        return tick.exists() and tick.stat().st_mtime_ns > moment

    async with worker(ticking, *TRAIN, "steps=1", "work_until_stop") as context:
        polling = asyncio.create_task(poll(context))
        await eventually(lambda: ticks_after(0))
        job_id = await submit(database)
        await until_step(database, job_id, 1)
        moment = tick.stat().st_mtime_ns
        await eventually(lambda: ticks_after(moment))
        context.stop.set()
        await polling


async def test_polling_outlives_a_database_that_is_not_there_yet(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    async with worker(settings, *TRAIN, "finish") as context:
        polling = asyncio.create_task(poll(context))  # no tables: every look fails
        await furnish(settings)
        database = Database(settings.resolved_database_url)
        job_id = await submit(database)
        await until_status(database, job_id, "succeeded")
        context.stop.set()
        await polling
        await database.close()


def pictures() -> bytes:
    """Sixty pictures of two classes that a linear model can tell apart."""
    random = np.random.default_rng(0)
    labels = np.arange(60) % 2
    images = (random.integers(0, 100, (60, 8, 8)) + 100 * labels[:, None, None]).astype(np.uint8)
    archive = io.BytesIO()
    np.savez(archive, x=images, y=labels.astype(np.int64))
    return archive.getvalue()


async def test_the_real_trainer_under_the_real_worker(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    await furnish(settings, pictures())
    database = Database(settings.resolved_database_url)
    recipe = {"losses": [{"kind": "cross-entropy"}], "epochs": 2, "batch_size": 8}
    job_id = await submit(database, recipe=recipe, export=["safetensors"], seed=1)
    async with polling(settings, OMP_NUM_THREADS="1") as process:
        job = await until_status(database, job_id, "succeeded")
        assert not await has_torch(process.pid), "torch belongs into the trainer alone"
        process.terminate()
        assert await process.wait() == 0
    assert (job.step, job.total_steps) == (12, 12)
    await database.close()


async def test_the_real_trainer_dies_with_a_killed_worker(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    await furnish(settings)
    async with polling(settings) as process:
        spare = await one_child(process.pid)
        await eventually(lambda: has_torch(spare))
        process.kill()
        await process.wait()
    await until_dead(spare)


def test_the_tests_are_not_run_with_settings_of_a_real_service() -> None:
    assert not [name for name in os.environ if name.startswith("STILLHOUSE_")]
