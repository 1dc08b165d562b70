"""No job stays where it is for ever, whoever died."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import delete, select, update

from app.core.clock import now
from app.core.database import Database
from app.core.outbox import OutboxMessage
from app.jobs import leases, service
from app.jobs.lifecycle import Status
from app.jobs.reaper import Reaper
from app.jobs.tables import AttemptRow, JobRow, SweepLease
from tests.app.jobs.builders import (
    PROJECT,
    claim,
    let_backoff_pass,
    let_deadline_pass,
    let_lease_run_out,
    load,
    must_claim,
    running,
    submit,
)


def reaper(database: Database, owner: str = "reaper") -> Reaper:
    return Reaper(database, owner, every_seconds=1.0, backoff_seconds=5.0)


async def test_a_lost_lease_sends_the_job_back_at_once_and_counts_no_failure(database: Database) -> None:
    lease = await running(database)
    await let_lease_run_out(database, lease.job_id)
    await reaper(database).sweep()
    job = await load(database, lease.job_id)
    assert (job.status, job.lease_owner, job.failures, job.interruptions) == (Status.QUEUED, None, 0, 1)
    assert await claim(database) is not None


async def test_a_live_lease_is_left_alone(database: Database) -> None:
    lease = await running(database)
    await reaper(database).sweep()
    assert (await load(database, lease.job_id)).status == Status.RUNNING


async def test_a_job_whose_workers_keep_dying_ends_by_its_deadline_alone(database: Database) -> None:
    await submit(database, resources={"max_attempts": 1, "max_seconds": 100.0})
    for _ in range(4):
        lease = await must_claim(database)
        async with database.write() as session:
            await leases.start(session, lease)
        await let_time_pass(database, lease, 30.0)
        await let_lease_run_out(database, lease.job_id)
        await reaper(database).sweep()
        await let_backoff_pass(database, lease.job_id)
    job = await load(database, lease.job_id)
    assert (job.status, job.attempt, job.failures, job.interruptions) == (Status.FAILED, 4, 0, 3)
    assert job.error is not None
    assert (job.error["fault"], job.error["code"]) == ("deadline", "out_of_time")


async def let_time_pass(database: Database, lease: leases.Lease, seconds: float) -> None:
    """As if the worker had claimed the job so much earlier."""
    async with database.write() as session:
        mine = (AttemptRow.job_id == lease.job_id, AttemptRow.number == lease.attempt)
        await session.execute(update(AttemptRow).where(*mine).values(claimed_at=AttemptRow.claimed_at - seconds))
        earlier = JobRow.deadline_at - seconds
        await session.execute(update(JobRow).where(JobRow.id == lease.job_id).values(deadline_at=earlier))


async def test_a_lease_that_runs_out_soon_is_looked_at_in_time(database: Database) -> None:
    quiet = Reaper(database, "reaper", every_seconds=50.0, backoff_seconds=5.0)
    assert await quiet.pause() == 50.0
    lease = await running(database)
    assert await quiet.pause() == 50.0, "the lease lasts for 60 s"
    async with database.write() as session:
        await session.execute(update(JobRow).where(JobRow.id == lease.job_id).values(lease_expires_at=now() + 20.0))
    assert 0.0 < await quiet.pause() <= 20.0
    await let_lease_run_out(database, lease.job_id)
    assert 0.0 < await quiet.pause() < 1.0


@pytest.mark.parametrize(("ask", "ends"), [("cancel", Status.CANCELLED), ("pause", Status.PAUSED)])
@pytest.mark.parametrize("cause", [let_lease_run_out, let_deadline_pass])
async def test_a_request_is_fulfilled_though_the_worker_never_answers(
    database: Database, ask: str, ends: Status, cause: object
) -> None:
    lease = await running(database)
    async with database.write() as session:
        if ask == "cancel":
            await service.cancel(session, PROJECT, lease.job_id)
        else:
            await service.pause(session, PROJECT, lease.job_id, 60.0)
    await cause(database, lease.job_id)  # type: ignore[operator]  # one of the two functions above
    await reaper(database).sweep()
    assert (await load(database, lease.job_id)).status == ends
    with pytest.raises(leases.LeaseLost):
        async with database.write() as session:
            await leases.beat(session, lease)


async def test_a_job_that_waits_too_long_expires(database: Database) -> None:
    job_id = await submit(database)
    await let_deadline_pass(database, job_id)
    await reaper(database).sweep()
    job = await load(database, job_id)
    assert job.status == Status.EXPIRED
    assert job.error is not None
    assert job.error["fault"] == "deadline"


async def test_a_job_that_runs_too_long_fails_by_its_deadline_and_its_worker_is_told(database: Database) -> None:
    lease = await running(database)
    await let_deadline_pass(database, lease.job_id)
    await reaper(database).sweep()
    job = await load(database, lease.job_id)
    assert job.status == Status.FAILED
    assert job.error is not None
    assert job.error["fault"] == "deadline"
    with pytest.raises(leases.LeaseLost):
        async with database.write() as session:
            await leases.beat(session, lease)


async def test_time_of_earlier_attempts_counts_against_the_limit(database: Database) -> None:
    lease = await running(database, resources={"max_seconds": 10_000.0})
    async with database.write() as session:
        mine = (AttemptRow.job_id == lease.job_id, AttemptRow.number == lease.attempt)
        await session.execute(update(AttemptRow).where(*mine).values(claimed_at=now() - 6000.0))
        await leases.release(session, lease, "the worker stops")
    await must_claim(database)
    job = await load(database, lease.job_id)
    assert job.deadline_at is not None
    assert 3000.0 < job.deadline_at - job.status_at <= 4000.0


async def test_a_lost_message_is_sent_again(database: Database) -> None:
    job_id = await submit(database)
    async with database.write() as session:
        await session.execute(delete(OutboxMessage))
        await session.execute(update(JobRow).values(dispatched_at=now() - 3600.0))
    await reaper(database).sweep()
    await reaper(database).sweep()
    async with database.read() as session:
        messages = list(await session.scalars(select(OutboxMessage)))
    assert [message.payload["job_id"] for message in messages] == [job_id]


async def test_of_several_reapers_one_sweeps(database: Database) -> None:
    swept = await asyncio.gather(*(reaper(database, f"reaper-{n}").sweep() for n in range(4)))
    assert sum(swept) == 1


async def test_a_dead_reaper_is_replaced(database: Database) -> None:
    assert await reaper(database, "first").sweep()
    assert not await reaper(database, "second").sweep()
    async with database.write() as session:
        await session.execute(update(SweepLease).values(expires_at=now() - 1.0))
    assert await reaper(database, "second").sweep()
