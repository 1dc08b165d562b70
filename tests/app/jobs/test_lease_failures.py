"""What a failure, an interruption or a return of a job means for it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, update

from app.core.database import Database
from app.jobs import leases, reporting, service
from app.jobs.leases import Lease
from app.jobs.lifecycle import Status
from app.jobs.reaper import Reaper
from app.jobs.requeue import FREE_RESTARTS, WINDOW_SECONDS, Cause
from app.jobs.tables import AttemptRow, JobRow, PhaseRow
from tests.app.jobs.builders import (
    PROJECT,
    claim,
    let_backoff_pass,
    let_lease_run_out,
    load,
    must_claim,
    running,
    submit,
)
from tests.app.jobs.leased import at_step


async def test_a_user_s_fault_is_not_tried_again(database: Database) -> None:
    lease = await running(database)
    async with database.write() as session:
        await leases.fail(session, lease, fault="user", code="nan_loss", message="loss is NaN", step=7)
    job = await load(database, lease.job_id)
    assert job.status == Status.FAILED
    assert job.error == {"fault": "user", "code": "nan_loss", "message": "loss is NaN", "param": None, "step": 7}


async def test_a_system_s_fault_is_tried_again_until_attempts_run_out(database: Database) -> None:
    lease = await running(database, resources={"max_attempts": 2})
    async with database.write() as session:
        await reporting.record(session, lease, at_step(3), [])
        await leases.fail(session, lease, fault="system", code="trainer_died", message="the trainer died")
    job = await load(database, lease.job_id)
    assert (job.status, job.failures) == (Status.QUEUED, 1)
    assert await claim(database) is None, "it waits for its back-off"
    await let_backoff_pass(database, lease.job_id)
    again = await must_claim(database)
    async with database.write() as session:
        await leases.start(session, again)
        await reporting.record(session, again, at_step(5), [])
        await leases.fail(session, again, fault="system", code="trainer_died", message="the trainer died")
    job = await load(database, lease.job_id)
    assert job.status == Status.FAILED
    assert job.error is not None
    assert job.error["code"] == "trainer_died"


async def die(
    database: Database, lease: Lease, cause: Cause, step: int = 7, phase: str = "training", **told: Any
) -> JobRow:
    """Let an attempt get to a step and end; the job as it then is, which another worker has started again if it can."""
    async with database.write() as session:
        await leases.start(session, lease)
        await reporting.begin_phase(session, lease, phase)
        await reporting.record(session, lease, at_step(step), [])
        what = {"fault": "system", "code": "trainer_died", "message": "the trainer died", **told}
        await leases.fail(session, lease, cause=cause, **what)
    await let_backoff_pass(database, lease.job_id)
    return await load(database, lease.job_id)


async def test_two_deaths_at_one_step_with_no_new_checkpoint_are_a_poison_job(database: Database) -> None:
    await submit(database, resources={"max_attempts": 10})
    assert (await die(database, await must_claim(database), "trainer")).status == Status.QUEUED
    job = await die(database, await must_claim(database), "trainer")
    assert job.status == Status.FAILED
    assert job.error is not None
    assert (job.error["code"], job.failures) == ("poison_job", 2)
    assert job.error["message"] == "died twice at step 7: the trainer died"


async def test_want_of_memory_at_one_step_ends_a_job(database: Database) -> None:
    await submit(database, resources={"max_attempts": 10})
    for _ in range(2):
        job = await die(database, await must_claim(database), "trainer", fault="capacity", code="out_of_memory")
    assert job.error is not None
    assert (job.status, job.error["fault"], job.error["code"]) == (Status.FAILED, "capacity", "poison_job")


async def test_deaths_in_different_phases_after_the_last_step_are_no_poison(database: Database) -> None:
    await submit(database, resources={"max_attempts": 10})
    await die(database, await must_claim(database), "trainer", phase="evaluating")
    assert (await die(database, await must_claim(database), "trainer", phase="exporting")).status == Status.QUEUED
    job = await die(database, await must_claim(database), "trainer", phase="exporting")
    assert job.error is not None
    assert job.error["message"] == "died twice at step 7 while exporting: the trainer died"


@pytest.mark.parametrize("between", ["lost", "outside", "pause", "release"])
async def test_what_the_job_did_not_cause_counts_neither_as_failure_nor_as_poison(
    database: Database, between: str
) -> None:
    """It is killed, paused and drained at one step again and again, and goes on every time."""
    await submit(database, resources={"max_attempts": 1})
    for _ in range(8):
        lease = await must_claim(database)
        if between == "outside":
            await die(database, lease, "outside", code="trainer_killed")
            continue
        async with database.write() as session:
            await leases.start(session, lease)
            await reporting.record(session, lease, at_step(168), [])
            if between == "pause":
                await service.pause(session, PROJECT, lease.job_id, 60.0)
                await leases.release(session, lease, "paused")
                await service.resume(session, PROJECT, lease.job_id)
            elif between == "release":
                await leases.release(session, lease, "its worker stops")
        if between == "lost":
            await let_lease_run_out(database, lease.job_id)
            await Reaper(database, "reaper", 1.0, 1.0).sweep()
            await let_backoff_pass(database, lease.job_id)
    job = await load(database, lease.job_id)
    counted = 8 if between in ("lost", "outside") else 0
    assert (job.status, job.attempt, job.failures, job.interruptions) == (Status.QUEUED, 8, 0, counted)


async def test_a_death_of_its_own_is_remembered_over_interruptions(database: Database) -> None:
    await submit(database, resources={"max_attempts": 10})
    await die(database, await must_claim(database), "trainer")
    await die(database, await must_claim(database), "outside", step=9)
    job = await die(database, await must_claim(database), "trainer")
    assert job.error is not None
    assert job.error["code"] == "poison_job"


async def test_what_an_attempt_stands_on_fails_it_and_is_never_poison(database: Database) -> None:
    await submit(database, resources={"max_attempts": 3})
    for _ in range(3):
        job = await die(database, await must_claim(database), "service", code="store_unavailable", message="no store")
    assert job.error is not None
    assert (job.status, job.failures, job.error["code"]) == (Status.FAILED, 3, "store_unavailable")


async def test_interruptions_cost_no_pause_until_they_come_in_quick_succession(database: Database) -> None:
    await submit(database)
    pauses = []
    for _ in range(FREE_RESTARTS + 3):
        lease = await must_claim(database)
        async with database.write() as session:
            await leases.start(session, lease)
            await leases.fail(session, lease, fault="system", code="trainer_killed", message="killed", cause="outside")
        job = await load(database, lease.job_id)
        pauses.append(round(job.next_run_at - job.status_at))
        await let_backoff_pass(database, lease.job_id)
    assert pauses == [0] * FREE_RESTARTS + [5, 10, 20]
    async with database.write() as session:
        await session.execute(update(AttemptRow).values(ended_at=AttemptRow.ended_at - WINDOW_SECONDS))
    job = await die(database, await must_claim(database), "outside")
    assert await claim(database) is not None


async def test_a_job_that_is_handed_back_is_free_at_once_and_counts_no_failure(database: Database) -> None:
    lease = await running(database)
    async with database.write() as session:
        await leases.release(session, lease, "the worker stops")
    again = await must_claim(database, "worker-2")
    assert (again.job_id, (await load(database, lease.job_id)).failures) == (lease.job_id, 0)


@pytest.mark.parametrize(("ask", "ends"), [("pause", Status.PAUSED), ("cancel", Status.CANCELLED)])
async def test_handing_back_a_job_that_is_to_stop_ends_as_asked(database: Database, ask: str, ends: Status) -> None:
    lease = await running(database)
    async with database.write() as session:
        if ask == "pause":
            await service.pause(session, PROJECT, lease.job_id, 60.0)
        else:
            await service.cancel(session, PROJECT, lease.job_id)
        await leases.release(session, lease, "the worker stops")
    assert (await load(database, lease.job_id)).status == ends


async def test_attempts_and_phases_have_begin_and_end(database: Database) -> None:
    lease = await running(database)
    async with database.write() as session:
        await reporting.begin_phase(session, lease, "training")
        await reporting.begin_phase(session, lease, "exporting")
        await leases.fail(session, lease, fault="user", code="x", message="x")
    async with database.read() as session:
        attempt = await session.get(AttemptRow, (lease.job_id, 1))
        phases = list(await session.scalars(select(PhaseRow).order_by(PhaseRow.started_at)))
    assert attempt is not None
    assert (attempt.outcome, attempt.ended_at is not None) == ("failed", True)
    assert [phase.phase for phase in phases] == ["training", "exporting"]
    assert all(phase.ended_at is not None for phase in phases)
