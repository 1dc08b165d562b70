"""Attempts that are stopped, or lose their lease, their database or their store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select, update

from app.core.database import Database
from app.core.settings import Settings
from app.core.store import Store, StoredObject
from app.jobs import leases, service
from app.jobs.tables import ArtifactRow, JobRow
from tests.app.jobs.builders import events, let_lease_run_out, load
from tests.servers import postgresql
from tests.worker.supervisor.attempt_scene import TRAIN, checkpoints, nothing_is_left, published, running, say_go
from tests.worker.supervisor.stage import (
    HASTE,
    alive,
    ask,
    eventually,
    furnish,
    processes_in,
    scripted,
    settings_for,
    submit,
    until_status,
    until_step,
    worker,
)
from worker.supervisor.attempt import run_next
from worker.supervisor.context import Context, open_context


async def test_cancel_ends_a_trainer_that_ignores_sigterm(settings: Settings, database: Database) -> None:
    async with worker(settings, "ignore_sigterm", *TRAIN, "steps=1", "hang") as context:
        async with running(context, database) as job_id:
            (trainer,) = processes_in(context.scratch.path / "trainers" / "1")
            await ask(database, service.cancel, job_id)
        assert not alive(trainer)
        assert nothing_is_left(context)
    assert (await load(database, job_id)).status == "cancelled"


async def test_a_trainer_that_talks_hears_of_orders_before_the_next_heartbeat(
    settings: Settings, database: Database
) -> None:
    slow = settings.model_copy(update={"lease_seconds": 4000.0, "heartbeat_seconds": 1000.0})
    async with worker(slow, *TRAIN, "work_until_stop") as context, running(context, database) as job_id:
        await ask(database, service.pause, job_id, 20.0)
        await until_status(database, job_id, "paused")


async def test_cancel_while_publishing_publishes_nothing(settings: Settings, database: Database) -> None:
    store = SlowStore.from_settings(settings)
    async with worker(settings, *TRAIN, "steps=1", "finish") as plain:
        context = replace(plain, store=store)
        async with running(context, database) as job_id:
            await store.asked.wait()
            await ask(database, service.cancel, job_id)
    assert (await load(database, job_id)).status == "cancelled"
    async with database.read() as session:
        assert list(await session.scalars(select(ArtifactRow))) == []


async def test_pause_saves_and_resume_goes_on_from_there(settings: Settings, database: Database) -> None:
    async with worker(settings, *TRAIN, "work_until_stop") as context, running(context, database, step=2) as job_id:
        await ask(database, service.pause, job_id, 20.0)
    job = await load(database, job_id)
    assert (job.status, job.failures) == ("paused", 0)
    (checkpoint,) = await checkpoints(database, job_id)
    await ask(database, service.resume, job_id)
    async with worker(settings, *TRAIN, "steps=1", "finish") as context:
        await run_next(context)
    job = await load(database, job_id)
    assert (job.status, job.step) == ("succeeded", checkpoint.step + 1)


async def test_a_trainer_that_does_not_stop_for_a_pause_is_killed(settings: Settings, database: Database) -> None:
    hurried = settings.model_copy(update={"stop_seconds": 0.2})
    acts = (*TRAIN, "steps=1", "save", "steps=1", "hang")
    async with worker(hurried, *acts) as context, running(context, database, step=2) as job_id:
        await ask(database, service.pause, job_id, 20.0)
    assert (await load(database, job_id)).status == "paused"
    assert [checkpoint.step for checkpoint in await checkpoints(database, job_id)] == [1]


async def test_a_job_that_runs_too_long_fails_with_its_deadline(settings: Settings, database: Database) -> None:
    async with worker(settings, *TRAIN, "steps=1", "hang") as context:
        job_id = await submit(database, resources={"max_seconds": 0.5})
        await run_next(context)
    job = await load(database, job_id)
    assert job.error is not None
    assert (job.status, job.error["fault"], job.error["param"]) == ("failed", "deadline", "resources.max_seconds")


async def test_a_worker_that_stops_saves_and_hands_back(settings: Settings, database: Database) -> None:
    async with worker(settings, *TRAIN, "work_until_stop") as context:
        async with running(context, database, step=2) as job_id:
            context.stop.set()
        assert nothing_is_left(context)
    job = await load(database, job_id)
    assert (job.status, job.failures) == ("queued", 0)
    (checkpoint,) = await checkpoints(database, job_id)
    async with worker(settings, *TRAIN, "finish") as context:
        await run_next(context)
    job = await load(database, job_id)
    assert (job.status, job.step, job.attempt) == ("succeeded", checkpoint.step, 2)


async def test_a_worker_that_stops_before_training_began_hands_back(settings: Settings, database: Database) -> None:
    job_id = await submit(database)
    async with worker(settings, "hang") as context:
        attempt = asyncio.create_task(run_next(context))
        await until_status(database, job_id, "leased")
        context.stop.set()
        await attempt
    assert (await load(database, job_id)).status == "queued"


async def test_a_worker_that_stops_while_publishing_finishes(settings: Settings, database: Database) -> None:
    store = SlowStore.from_settings(settings)
    async with worker(settings, *TRAIN, "steps=1", "finish") as plain:
        context = replace(plain, store=store)
        async with running(context, database) as job_id:
            await store.asked.wait()
            context.stop.set()
            store.go.set()
    assert (await load(database, job_id)).status == "succeeded"


async def test_a_lost_lease_kills_the_trainer_and_silences_the_attempt(settings: Settings, database: Database) -> None:
    async with worker(settings, *TRAIN, "steps=1", "save", "await_stop") as context:
        async with running(context, database) as job_id:
            (trainer,) = processes_in(context.scratch.path / "trainers" / "1")
            await let_lease_run_out(database, job_id)
            async with database.write() as session:
                job = (await session.scalars(select(JobRow).where(JobRow.id == job_id))).one()
                await leases.settle_death(session, job, {"message": "lost"}, 0.0)
            told = len(await events(database, job_id))
        assert not alive(trainer)
        assert nothing_is_left(context)
    assert len(await events(database, job_id)) == told
    assert (await load(database, job_id)).status == "queued"


async def test_beats_go_on_while_a_checkpoint_is_uploaded(settings: Settings, database: Database) -> None:
    store = SlowStore.from_settings(settings)
    async with worker(settings, *TRAIN, "steps=1", "save", "steps=1", "work_until_stop") as plain:
        context = replace(plain, store=store)
        async with running(context, database, step=2) as job_id:
            await store.asked.wait()
            expiry = (await load(database, job_id)).lease_expires_at or 0.0
            await eventually(lambda: expires_after(database, job_id, expiry + 0.2))
            await until_step(database, job_id, (await load(database, job_id)).step + 2)
            store.go.set()
            await eventually(lambda: published(database, job_id, 1))
            context.stop.set()


async def expires_after(database: Database, job_id: str, moment: float) -> bool:
    return ((await load(database, job_id)).lease_expires_at or 0.0) > moment


async def test_the_trainer_dies_before_the_lease_when_the_database_is_gone(tmp_path: Path) -> None:
    with postgresql() as server, server.database() as url:
        settings = settings_for(tmp_path, url, lease_seconds=1.5)
        await furnish(settings)
        database = Database(url)
        async with worker(settings, *TRAIN, "steps=1", "hang") as context:
            job_id = await submit(database)
            attempt = asyncio.create_task(run_next(context))
            await until_step(database, job_id, 1)
            (trainer,) = processes_in(context.scratch.path / "trainers" / "1")
            await database.close()
            server.stop()
            await attempt
            assert not alive(trainer)
            assert nothing_is_left(context)
            server.start()
            job = await load(database, job_id)
            assert job.status == "running", "nobody could write that it is over: that is for the reaper"
            await database.close()


async def test_an_attempt_outlives_a_restart_of_the_database(tmp_path: Path) -> None:
    with postgresql() as server, server.database() as url:
        settings = settings_for(tmp_path, url, lease_seconds=30.0)
        await furnish(settings)
        database = Database(url)
        acts = (*TRAIN, "steps=1", "work_until_stop")
        async with worker(settings, *acts) as context, running(context, database) as job_id:
            step = (await load(database, job_id)).step
            server.stop()
            server.start()
            await until_step(database, job_id, step + 5)
            context.stop.set()
        assert (await load(database, job_id)).status == "queued"
        assert len(await checkpoints(database, job_id)) == 1
        await database.close()


class SlowStore(Store):
    """A store whose uploads wait for permission."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def upload(self, path: Path, key: str) -> StoredObject:
        self.asked.set()
        await self.go.wait()
        return await super().upload(path, key)


@asynccontextmanager
async def lost_store(settings: Settings) -> AsyncIterator[None]:
    """The local store as if its disk had gone: a file lies where its folder was."""
    folder = settings.data_dir / "store"
    folder.rename(folder.with_name("unmounted"))
    folder.touch()
    yield
    folder.unlink()
    folder.with_name("unmounted").rename(folder)


async def test_an_upload_waits_for_a_store_that_comes_back(
    settings: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async def warned() -> bool:
        return "the store can't be reached" in caplog.text

    caplog.set_level(logging.WARNING)
    acts = (*TRAIN, "steps=1", "work_until_stop", "hang")
    async with worker(settings, *acts) as context, running(context, database) as job_id, lost_store(settings):
        await ask(database, service.pause, job_id, 20.0)
        await eventually(warned)
    assert (await load(database, job_id)).status == "paused"
    assert len(await checkpoints(database, job_id)) == 1


async def test_a_store_that_stays_away_fails_the_attempt(settings: Settings, database: Database) -> None:
    timeouts = replace(HASTE, store=0.1)
    acts = (*TRAIN, "steps=1", "await_go", "save", "hang")
    once = {"max_attempts": 1}
    async with (
        worker(settings, *acts, timeouts=timeouts) as context,
        running(context, database, resources=once) as job_id,
        lost_store(settings),
    ):
        await say_go(context)
        await until_status(database, job_id, "failed")
    job = await load(database, job_id)
    assert job.error is not None
    assert (job.error["fault"], job.error["code"]) == ("system", "store_unavailable")


async def test_many_workers_finish_many_jobs_once_each(settings: Settings, database: Database) -> None:
    jobs = [await submit(database) for _ in range(12)]
    async with worker(settings, *TRAIN, "steps=2", "save", "finish") as a, worker(settings, *TRAIN, "finish") as b:
        third = open_context(settings, ["any"], scripted(*TRAIN, "steps=1", "finish"), HASTE)
        async with third as c:

            async def drain(context: Context) -> None:
                while await run_next(context):
                    pass

            await asyncio.gather(drain(a), drain(b), drain(c))
    for job_id in jobs:
        job = await load(database, job_id)
        assert (job.status, job.attempt) == ("succeeded", 1)
        assert [event.seq for event in await events(database, job_id)] == list(range(1, job.last_seq + 1))


async def test_an_attempt_cut_off_at_any_moment_leaves_a_job_that_can_go_on(
    settings: Settings, database: Database
) -> None:
    """Cancelled in the middle of whatever it does: connections stay usable, no lease is held by a living trainer."""
    async with worker(settings, *TRAIN, "steps=3", "save", "steps=3", "finish") as context:
        for number in range(15):
            job_id = await submit(database)
            attempt = asyncio.create_task(run_next(context, job_id))
            await asyncio.wait([attempt], timeout=0.01 * number)
            attempt.cancel()
            await asyncio.wait([attempt])
            assert nothing_is_left(context)
            async with database.write() as session:
                await session.execute(update(JobRow).where(JobRow.id == job_id).values(name="written"))
