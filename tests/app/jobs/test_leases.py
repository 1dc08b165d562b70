"""Claims, beats and everything that a worker writes: only under the current token."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import Database
from app.core.outbox import OutboxMessage
from app.jobs import leases, publishing, reporting, repository, service
from app.jobs.inputs import input_files, model_names
from app.jobs.leases import Lease, LeaseLost, StoredFile
from app.jobs.lifecycle import Status
from app.jobs.tables import ArtifactRow, CheckpointRow, Metric
from app.models.tables import ModelRow
from tests.app.jobs.builders import (
    CONFIG,
    PROJECT,
    claim,
    events,
    let_deadline_pass,
    load,
    must_claim,
    running,
    submit,
)
from tests.app.jobs.leased import at_step, lose

FILE = StoredFile("model.safetensors", "some/key", 4, "a" * 64)


async def test_two_claims_at_once_give_one_lease(database: Database) -> None:
    await submit(database)
    won = await asyncio.gather(*(claim(database, f"worker-{n}") for n in range(8)))
    assert sum(lease is not None for lease in won) == 1


async def test_many_claims_at_once_give_every_job_once(database: Database) -> None:
    jobs = {await submit(database) for _ in range(6)}
    won = await asyncio.gather(*(claim(database, f"worker-{n}") for n in range(9)))
    got = [lease.job_id for lease in won if lease]
    assert len(got) == len(set(got))
    rest = [await claim(database) for _ in range(6)]
    assert {*got, *(lease.job_id for lease in rest if lease)} == jobs


async def test_the_highest_priority_is_claimed_first_then_the_oldest(database: Database) -> None:
    low, first, second = [await submit(database, priority=priority) for priority in (10, 90, 90)]
    assert [(await must_claim(database)).job_id for _ in range(3)] == [first, second, low]


async def test_a_job_of_another_queue_is_not_claimed(database: Database) -> None:
    await submit(database, resources={"queue": "gpu"})
    assert await claim(database) is None


async def test_a_job_for_more_gpus_than_a_worker_has_is_left_to_another(database: Database) -> None:
    async def claim_with(gpus: int) -> str | None:
        async with database.write() as session:
            found = await leases.claim(session, owner="w", queues=["cpu", "gpu"], lease_seconds=60.0, gpus=gpus)
            return found.job_id if found else None

    four = await submit(database, resources={"queue": "gpu", "processes": 4}, priority=90)
    one = await submit(database, resources={"queue": "gpu"})
    cores = await submit(database, resources={"queue": "cpu", "processes": 4})
    assert [await claim_with(2) for _ in range(3)] == [one, cores, None]
    assert await claim_with(4) == four


async def test_a_job_for_more_machines_than_a_worker_has_is_left_to_another(database: Database) -> None:
    async def claim_with(nodes: int) -> str | None:
        async with database.write() as session:
            found = await leases.claim(session, owner="w", queues=["cpu"], lease_seconds=60.0, nodes=nodes)
            return found.job_id if found else None

    three = await submit(database, resources={"queue": "cpu", "nodes": 3}, priority=90)
    two = await submit(database, resources={"queue": "cpu", "nodes": 2})
    assert await claim_with(1) is None
    assert [await claim_with(2), await claim_with(2)] == [two, None]
    assert await claim_with(3) == three


async def test_a_message_for_a_job_that_is_taken_claims_nothing(database: Database) -> None:
    job_id = await submit(database)
    await must_claim(database)
    assert await claim(database, job_id=job_id) is None


async def test_the_token_grows_with_every_claim(database: Database) -> None:
    first = await running(database)
    second = await lose(database, first)
    assert (second.token, second.attempt) == (first.token + 1, first.attempt + 1)


async def test_a_beat_extends_the_lease_and_brings_orders(database: Database) -> None:
    lease = await running(database)
    before = (await load(database, lease.job_id)).lease_expires_at
    async with database.write() as session:
        assert await leases.beat(session, lease) == (False, False, False)
        await service.pause(session, PROJECT, lease.job_id, 60.0)
        assert (await leases.beat(session, lease)).pause
        await service.cancel(session, PROJECT, lease.job_id)
        assert (await leases.beat(session, lease)).cancel
    after = (await load(database, lease.job_id)).lease_expires_at
    assert before is not None
    assert after is not None
    assert after >= before


async def test_a_beat_after_the_deadline_says_so(database: Database) -> None:
    lease = await running(database)
    await let_deadline_pass(database, lease.job_id)
    async with database.write() as session:
        assert (await leases.beat(session, lease)).out_of_time


WRITERS: dict[str, Callable[[AsyncSession, Lease], Awaitable[Any]]] = {
    "beat": leases.beat,
    "start": leases.start,
    "begin_phase": lambda session, lease: reporting.begin_phase(session, lease, "training"),
    "record": lambda session, lease: reporting.record(session, lease, at_step(5), [("train/loss", 5, 0.5)]),
    "record metrics": lambda session, lease: reporting.record(session, lease, None, [("train/loss", 5, 0.5)]),
    "log": lambda session, lease: reporting.log(session, lease, "hello"),
    "publish_checkpoint": lambda session, lease: publishing.publish_checkpoint(session, lease, 5, [FILE]),
    "succeed": lambda session, lease: publishing.succeed(session, lease, [FILE], CONFIG, 650, {}),
    "fail": lambda session, lease: leases.fail(session, lease, fault="user", code="x", message="x"),
    "fail system": lambda session, lease: leases.fail(session, lease, fault="system", code="x", message="x"),
    "cancelled": leases.cancelled,
    "paused": leases.paused,
    "release": lambda session, lease: leases.release(session, lease, "stopping"),
}


@pytest.mark.parametrize("writer", WRITERS)
async def test_a_stale_worker_can_write_nothing(database: Database, writer: str) -> None:
    stale = await running(database)
    fresh = await lose(database, stale)
    async with database.write() as session:
        await leases.start(session, fresh)
    before = await load(database, stale.job_id)
    with pytest.raises(LeaseLost):
        async with database.write() as session:
            await WRITERS[writer](session, stale)
    after = await load(database, stale.job_id)
    unchanged = (
        "status",
        "last_seq",
        "step",
        "lease_token",
        "lease_owner",
        "lease_expires_at",
        "checkpoint_id",
        "model_id",
    )
    assert [getattr(before, name) for name in unchanged] == [getattr(after, name) for name in unchanged]
    async with database.read() as session:
        for table in (ArtifactRow, CheckpointRow, Metric, ModelRow):
            rows = await session.scalar(select(func.count()).select_from(table).where(table.job_id == stale.job_id))
            assert rows == 0


async def test_published_steps_never_go_back_within_an_attempt(database: Database) -> None:
    lease = await running(database)
    async with database.write() as session:
        await reporting.record(session, lease, at_step(10), [])
    with pytest.raises(LeaseLost):
        async with database.write() as session:
            await reporting.record(session, lease, at_step(9), [])


async def test_the_next_attempt_starts_at_the_step_of_the_newest_checkpoint(database: Database) -> None:
    lease = await running(database)
    async with database.write() as session:
        await publishing.publish_checkpoint(session, lease, 20, [FILE])
        await reporting.record(session, lease, at_step(35), [("train/loss", step, 1.0) for step in (10, 20, 30)])
    again = await lose(database, lease)
    assert again.checkpoint is not None
    assert (again.checkpoint.step, again.checkpoint.files) == (20, [FILE])
    async with database.write() as session:
        await leases.start(session, again)
        await reporting.record(session, again, at_step(30), [("train/loss", 30, 2.0)])
    async with database.read() as session:
        assert await repository.series(session, lease.job_id, "train/loss", 100) == [(10, 1.0), (20, 1.0), (30, 2.0)]


async def test_only_the_newest_checkpoints_are_kept(database: Database) -> None:
    lease = await running(database)
    given_up: list[str] = []
    for step in (1, 2, 3, 4):
        async with database.write() as session:
            file = StoredFile("state", f"key-{step}", 1, "b" * 64)
            given_up += await publishing.publish_checkpoint(session, lease, step, [file])
    assert given_up == ["key-1", "key-2"]
    async with database.read() as session:
        assert [row.step for row in await repository.checkpoints_of(session, lease.job_id)] == [4, 3]


async def test_success_publishes_artifacts_and_model_under_the_token(database: Database) -> None:
    lease = await running(database, name="student")
    async with database.write() as session:
        model_id = await publishing.succeed(session, lease, [FILE], CONFIG, 650, {"student": {"accuracy": 1.0}})
    job = await load(database, lease.job_id)
    assert (job.status, job.model_id, job.lease_owner, job.deadline_at) == (Status.SUCCEEDED, model_id, None, None)
    async with database.read() as session:
        artifact = await repository.artifact(session, lease.job_id, FILE.name)
        assert artifact is not None
        assert (artifact.token, artifact.attempt) == (lease.token, lease.attempt)
        model = await session.get(ModelRow, model_id)
        assert model is not None
        assert (model.name, model.job_id) == ("student", lease.job_id)


async def test_a_queued_job_is_announced_in_the_transaction_that_queues_it(database: Database) -> None:
    job_id = await submit(database)
    async with database.read() as session:
        messages = list(await session.scalars(select(OutboxMessage)))
    assert [(message.kind, message.payload) for message in messages] == [
        ("dispatch", {"job_id": job_id, "queue": "any"})
    ]


async def test_inputs_name_every_file_to_stage(database: Database) -> None:
    teacher = {"teacher": {"model": f"model_{PROJECT}"}, "recipe": {"losses": [{"kind": "kd"}]}}
    lease = await running(database, **teacher)
    async with database.write() as session:
        staged = await input_files(session, lease)
        assert await model_names(session, lease) == {}  # it has none
        await session.execute(update(ModelRow).values(name="my teacher"))
        assert await model_names(session, lease) == {f"model_{PROJECT}": "my teacher"}
    assert {reference: [file.name for file in files] for reference, files in staged.items()} == {
        f"file_{PROJECT}": ["digits.npz"],
        f"model_{PROJECT}": ["config.json"],
    }


async def test_events_are_numbered_without_holes(database: Database) -> None:
    lease = await running(database)
    async with database.write() as session:
        await reporting.log(session, lease, "one")
        await reporting.begin_phase(session, lease, "training")
        await publishing.publish_checkpoint(session, lease, 1, [FILE])
        await publishing.succeed(session, lease, [FILE], CONFIG, 650, {})
    numbers = [event.seq for event in await events(database, lease.job_id)]
    assert numbers == list(range(1, len(numbers) + 1))
