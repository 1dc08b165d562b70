"""The worker behind a real broker: Celery's processes, its deliveries, and the deaths that may befall them."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr
from sqlalchemy import select

from app.core.database import Database
from app.core.dispatch import RUN_JOB, BrokerUnavailable, CeleryDispatcher
from app.core.relay import relay
from app.core.settings import Settings
from app.jobs.reaper import Reaper
from app.jobs.tables import AttemptRow, CheckpointRow
from app.jobs.wake_up import DISPATCH
from tests.app.jobs.builders import load
from tests.servers import valkey
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
)
from worker.supervisor.celery_app import make_app

TRAIN = ("start", "phase=training")
UNTIL_STOP = (*TRAIN, "work_until_stop")
_databases = itertools.count(1)


@pytest.fixture
def broker_url(redis_url: str) -> Iterator[str]:
    """Address of a database of this test alone."""
    url = f"{redis_url.rpartition('/')[0]}/{next(_databases)}"
    yield url
    with redis.Redis.from_url(url) as client:
        client.flushdb()


@pytest.fixture
async def settings(tmp_path: Path, postgres_url: str, broker_url: str) -> Settings:
    settings = settings_for(tmp_path, postgres_url, broker_url=SecretStr(broker_url))
    await furnish(settings)
    return settings


@pytest.fixture
async def dispatcher(settings: Settings) -> AsyncIterator[CeleryDispatcher]:
    dispatcher = CeleryDispatcher(settings)
    yield dispatcher
    await dispatcher.close()


@asynccontextmanager
async def consuming(
    settings: Settings, *acts: str, arguments: tuple[str, ...] = (), **env: str
) -> AsyncIterator[Process]:
    """Celery's worker with one process in its pool; waits until that has warmed a trainer up."""
    broker = settings.broker_url.get_secret_value()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "celery", "-A", "tests.worker.supervisor.scripted_celery", "worker", *arguments),
        cwd=ROOT,
        env=process_environment(settings, *acts, STILLHOUSE_BROKER_URL=broker, **env),
        start_new_session=True,
    )
    try:
        await eventually(lambda: has_trainer(process.pid))
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def has_trainer(main: int) -> bool:
    return any(trainers_of(main))


def trainers_of(main: int) -> list[int]:
    """Trainers of all processes of the pool."""
    return [trainer for child in children(main) for trainer in children(child)]


async def ended_attempts(database: Database, job_id: str) -> list[str | None]:
    async with database.read() as session:
        outcomes = select(AttemptRow.outcome).where(AttemptRow.job_id == job_id).order_by(AttemptRow.number)
        return list(await session.scalars(outcomes))


async def until_idle(settings: Settings) -> None:
    """Wait until no message waits in the broker."""

    async def idle() -> bool:
        with redis.Redis.from_url(settings.broker_url.get_secret_value()) as client:
            return not any(client.llen(queue) for queue in ("any", "cpu", "gpu")) and not client.hlen("unacked")

    await eventually(idle)


async def test_a_job_reaches_the_worker_and_a_message_too_many_does_nothing(
    settings: Settings, database: Database, dispatcher: CeleryDispatcher
) -> None:
    """The same job is announced thrice, before and after its run."""
    job_id = await submit(database)
    async with consuming(settings, *TRAIN, "steps=2", "save", "finish") as process:
        await dispatcher.dispatch(job_id, "any")
        await dispatcher.dispatch(job_id, "any")
        await until_status(database, job_id, "succeeded")
        await dispatcher.dispatch(job_id, "any")
        await dispatcher.dispatch("job_unknown", "any")
        second = await submit(database)
        await dispatcher.dispatch(second, "any")
        await until_status(database, second, "succeeded")
        for pid in (process.pid, *children(process.pid)):
            assert not await has_torch(pid)
    assert await ended_attempts(database, job_id) == ["succeeded"]


async def test_a_message_delivered_to_two_workers_makes_one_attempt(
    settings: Settings, database: Database, dispatcher: CeleryDispatcher
) -> None:
    job_id = await submit(database)
    async with consuming(settings, *UNTIL_STOP) as first, consuming(settings, *UNTIL_STOP) as second:
        await dispatcher.dispatch(job_id, "any")
        await until_step(database, job_id, 1)
        await dispatcher.dispatch(job_id, "any")
        await until_idle(settings)
        await until_step(database, job_id, (await load(database, job_id)).step + 3)
        assert await ended_attempts(database, job_id) == [None]
        for process in (first, second):
            process.terminate()
            assert await process.wait() == 0
    assert await ended_attempts(database, job_id) == ["released"]


async def test_a_newer_api_may_say_more_than_the_worker_knows(
    settings: Settings, database: Database, dispatcher: CeleryDispatcher
) -> None:
    job_id = await submit(database)
    async with consuming(settings, *TRAIN, "finish"):
        dispatcher._celery.send_task(RUN_JOB, args=(job_id,), kwargs={"trace": "abc"}, queue="any")
        await until_status(database, job_id, "succeeded")


async def test_a_lost_message_is_sent_again_by_the_reaper(
    settings: Settings, database: Database, dispatcher: CeleryDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.jobs.reaper.REDISPATCH_SECONDS", 0.0)
    job_id = await submit(database)
    lost: list[str] = []

    async def lose(payload: dict[str, str]) -> None:
        lost.append(payload["job_id"])

    async def send(payload: dict[str, str]) -> None:
        await dispatcher.dispatch(payload["job_id"], payload["queue"])

    assert await relay(database, {DISPATCH: lose}) == 1
    assert lost == [job_id]
    await Reaper(database, "test", 5.0, 0.001).sweep()
    assert await relay(database, {DISPATCH: send}) == 1
    async with consuming(settings, *TRAIN, "finish"):
        await until_status(database, job_id, "succeeded")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
async def test_a_stopped_worker_saves_the_job_and_hands_it_back(
    settings: Settings, database: Database, dispatcher: CeleryDispatcher, number: signal.Signals
) -> None:
    job_id = await submit(database)
    async with consuming(settings, *UNTIL_STOP) as process:
        await dispatcher.dispatch(job_id, "any")
        await until_step(database, job_id, 2)
        mine = [*children(process.pid), *trainers_of(process.pid)]
        process.send_signal(number)
        await process.wait()
    assert not any(map(alive, mine))
    await assert_handed_back(database, job_id)


async def assert_handed_back(database: Database, job_id: str) -> None:
    """Queued again, with no failure counted and a checkpoint at the step that was reached."""
    job = await load(database, job_id)
    assert (job.status, job.failures) == ("queued", 0)
    async with database.read() as session:
        checkpoint = await session.get(CheckpointRow, job.checkpoint_id)
    assert checkpoint is not None
    assert checkpoint.step == job.step


async def test_stopping_all_processes_at_once_saves_the_job_too(
    settings: Settings, database: Database, dispatcher: CeleryDispatcher
) -> None:
    """As service managers do, which signal every process that they started."""
    job_id = await submit(database)
    async with consuming(settings, *UNTIL_STOP) as process:
        await dispatcher.dispatch(job_id, "any")
        await until_step(database, job_id, 2)
        for pid in (*children(process.pid), process.pid):
            os.kill(pid, signal.SIGTERM)
        assert await process.wait() == 0
    await assert_handed_back(database, job_id)


async def test_an_idle_worker_stops_and_leaves_nothing(settings: Settings) -> None:
    async with consuming(settings, "start") as process:
        mine = [*children(process.pid), *trainers_of(process.pid)]
        process.terminate()
        assert await process.wait() == 0
    await until_dead(*mine)
    assert not list(settings.scratch_dir.glob("worker-*"))


async def test_a_killed_pool_process_takes_its_trainers_with_it_and_is_replaced(
    settings: Settings, database: Database, dispatcher: CeleryDispatcher
) -> None:
    job_id = await submit(database)
    async with consuming(settings, *UNTIL_STOP) as process:
        await dispatcher.dispatch(job_id, "any")
        await until_step(database, job_id, 1)
        (child,) = children(process.pid)
        trainers = children(child)
        os.kill(child, signal.SIGKILL)
        await until_dead(child, *trainers)
        job = await until_status(database, job_id, "queued")  # the one in its place gives the job back
        assert (job.failures, job.interruptions) == (0, 1)
        await dispatcher.dispatch(job_id, "any")
        step = (await load(database, job_id)).step
        await until_step(database, job_id, step + 1)
        assert await ended_attempts(database, job_id) == ["lost", None]


async def test_killing_the_main_process_leaves_nothing_running(
    settings: Settings, database: Database, dispatcher: CeleryDispatcher
) -> None:
    job_id = await submit(database)
    async with consuming(settings, *UNTIL_STOP) as process:
        await dispatcher.dispatch(job_id, "any")
        await until_step(database, job_id, 1)
        mine = [*children(process.pid), *trainers_of(process.pid)]
        assert len(mine) >= 2
        process.kill()
        await until_dead(*mine)


async def test_the_worker_consumes_the_queues_that_it_is_told_to(
    settings: Settings, database: Database, dispatcher: CeleryDispatcher
) -> None:
    cpu = await submit(database, resources={"queue": "cpu"})
    anywhere = await submit(database)
    async with consuming(settings, *TRAIN, "finish", arguments=("-Q", "any")):
        await dispatcher.dispatch(cpu, "cpu")
        await dispatcher.dispatch(anywhere, "any")
        await until_status(database, anywhere, "succeeded")
    assert (await load(database, cpu)).status == "queued"
    async with consuming(settings, *TRAIN, "finish"):
        await until_status(database, cpu, "succeeded")


async def test_the_worker_finds_a_broker_again_that_was_away(settings: Settings, database: Database) -> None:
    with valkey() as server:
        away = settings.model_copy(update={"broker_url": SecretStr(server.url())})
        dispatcher = CeleryDispatcher(away)
        async with consuming(away, *TRAIN, "finish"):
            server.stop()
            with pytest.raises(BrokerUnavailable):
                await dispatcher.dispatch("job_lost", "any")
            server.start()
            job_id = await submit(database)
            await dispatcher.dispatch(job_id, "any")
            await until_status(database, job_id, "succeeded")
        await dispatcher.close()


async def test_the_tick_file_shows_that_messages_are_consumed(settings: Settings, tmp_path: Path) -> None:
    tick = tmp_path / "tick"

    async def ticked() -> bool:
        return tick.exists()

    async with consuming(settings, "start", STILLHOUSE_WORKER_TICK_FILE=str(tick)):
        await eventually(ticked)


async def test_a_worker_without_a_broker_does_not_start(settings: Settings) -> None:
    environment = process_environment(settings)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "celery", "-A", "worker.supervisor.celery_app", "worker"),
        cwd=ROOT,
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    stderr = await stderr_of(process)
    assert process.returncode != 0
    assert b"STILLHOUSE_BROKER_URL is not set" in stderr


def test_messages_are_taken_one_by_one_and_never_held(settings: Settings) -> None:
    """Each of these, left at its default, has lost or doubled long tasks somewhere."""
    conf = make_app(settings).conf
    wanted = {
        "task_acks_late": False,
        "task_reject_on_worker_lost": False,
        "task_ignore_result": True,
        "accept_content": ["json"],
        "task_serializer": "json",
        "worker_pool": "prefork",
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_hijack_root_logger": False,
        "worker_send_task_events": False,
        "broker_connection_max_retries": None,
        "broker_connection_retry_on_startup": True,
        "result_backend": None,
        "worker_soft_shutdown_timeout": 0.0,
    }
    assert {name: conf[name] for name in wanted} == wanted
    assert {queue.name: queue.exchange.name for queue in conf.task_queues} == {"any": "any", "cpu": "cpu"}
