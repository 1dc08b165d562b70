"""Each rule on moves by itself, and that a move and what its rules write come together or not at all."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import Database
from app.core.outbox import OutboxMessage
from app.jobs import lifecycle, moves, publishing, reporting, rules
from app.jobs.leases import Lease, StoredFile
from app.jobs.lifecycle import MOVES, Move, Status
from app.jobs.moves import move
from app.jobs.rules import (
    CANCEL_SECONDS,
    PAUSED_SECONDS,
    RULES,
    CountInterruption,
    EndAttempt,
    Enqueue,
    Finish,
    GrantLease,
    RecordEvent,
    RequireLeaseToken,
    Rule,
    SetDeadline,
    StartAtCheckpoint,
)
from app.jobs.tables import AttemptRow, JobRow, PhaseRow
from app.jobs.wake_up import DISPATCH
from tests.app.jobs.builders import events, load, must_claim, running, submit

FILE = StoredFile("model.safetensors", "key", 1, "0" * 64)
DAY = 86_400.0


async def only(
    monkeypatch: pytest.MonkeyPatch, rule: Rule | None, database: Database, job_id: str, step: Move, **given: Any
) -> JobRow:
    """Make a move of which only one rule, or none, knows."""
    monkeypatch.setattr(moves, "RULES", () if rule is None else (rule,))
    async with database.write() as session:
        moved = await move(session, job_id, step, "moved", **given)
    monkeypatch.undo()
    assert moved is not None
    return await load(database, job_id)


async def attempts(database: Database, job_id: str) -> list[AttemptRow]:
    async with database.read() as session:
        return list(await session.scalars(select(AttemptRow).where(AttemptRow.job_id == job_id)))


async def messages(database: Database) -> list[dict[str, Any]]:
    async with database.read() as session:
        return list(await session.scalars(select(OutboxMessage.payload).where(OutboxMessage.kind == DISPATCH)))


def test_every_rule_is_listed_once_and_is_about_moves_of_the_table() -> None:
    written = {kind for kind in vars(rules).values() if isinstance(kind, type) and issubclass(kind, Rule)} - {Rule}
    assert [type(rule) for rule in RULES] == list(dict.fromkeys(type(rule) for rule in RULES))
    assert {type(rule) for rule in RULES} == written
    assert all(rule.moves and rule.moves <= set(MOVES) and type(rule).__doc__ for rule in RULES)


async def test_without_rules_a_move_changes_the_status_alone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await submit(database)
    job = await only(monkeypatch, None, database, job_id, lifecycle.CLAIM)
    assert (job.status, job.previous_status, job.lease_token, job.attempt, job.last_seq) == (
        "leased",
        "queued",
        0,
        0,
        1,
    )


async def test_a_fenced_move_needs_the_current_token(database: Database) -> None:
    lease = await running(database)
    async with database.write() as session:
        assert await move(session, lease.job_id, lifecycle.FAIL, "late", token=lease.token - 1) is None
    assert RequireLeaseToken.moves == {step for step in MOVES if step.fenced}


async def test_a_claim_grants_a_new_token_and_opens_an_attempt(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await submit(database)
    job = await only(monkeypatch, GrantLease(), database, job_id, lifecycle.CLAIM, lease_owner="worker-9")
    [attempt] = await attempts(database, job_id)
    assert (job.lease_token, job.attempt) == (1, 1)
    assert (attempt.number, attempt.token, attempt.worker, attempt.start_step) == (1, 1, "worker-9", 0)


async def test_an_attempt_starts_at_the_newest_checkpoint(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = await running(database)
    async with database.write() as session:
        await publishing.publish_checkpoint(session, lease, 30, [FILE])
        await move(session, lease.job_id, lifecycle.RELEASE, "handed back", token=lease.token, step=40)
    job = await only(monkeypatch, StartAtCheckpoint(), database, lease.job_id, lifecycle.CLAIM)
    assert job.step == 30


async def test_a_job_without_a_checkpoint_starts_at_step_0(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = await running(database)
    async with database.write() as session:
        await move(session, lease.job_id, lifecycle.RELEASE, "handed back", token=lease.token, step=40)
    assert (await only(monkeypatch, StartAtCheckpoint(), database, lease.job_id, lifecycle.CLAIM)).step == 0


async def test_an_attempt_ends_with_its_lease_and_its_phase(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await running(database)
    async with database.write() as session:
        await reporting.begin_phase(session, lease, "training")
    job = await only(monkeypatch, EndAttempt(), database, lease.job_id, lifecycle.RELEASE, token=lease.token)
    [attempt] = await attempts(database, lease.job_id)
    async with database.read() as session:
        [phase] = await session.scalars(select(PhaseRow).where(PhaseRow.job_id == lease.job_id))
    assert (job.lease_owner, job.lease_expires_at, job.phase) == (None, None, None)
    assert job.run_seconds > 0
    assert (attempt.outcome, attempt.ended_at is None, phase.ended_at is None) == ("released", False, False)


@pytest.mark.parametrize(
    ("step", "counted"), [(lifecycle.LOSE, 1), (lifecycle.INTERRUPT, 1), (lifecycle.RETRY, 0), (lifecycle.RELEASE, 0)]
)
async def test_only_what_ends_an_attempt_from_outside_is_an_interruption(
    database: Database, step: Move, counted: int
) -> None:
    lease = await running(database)
    async with database.write() as session:
        await move(session, lease.job_id, step, "ended", token=lease.token)
    assert (await load(database, lease.job_id)).interruptions == counted
    assert (step in CountInterruption.moves) == bool(counted)


async def _paused(database: Database, monkeypatch: pytest.MonkeyPatch) -> JobRow:
    return await only(monkeypatch, SetDeadline(), database, await submit(database), lifecycle.PAUSE_IDLE)


async def _delayed(database: Database, monkeypatch: pytest.MonkeyPatch) -> JobRow:
    lease = await running(database, resources={"max_queue_seconds": 3 * DAY})
    given = {"token": lease.token, "delay": DAY}
    return await only(monkeypatch, SetDeadline(), database, lease.job_id, lifecycle.RETRY, **given)


async def _claimed(database: Database, monkeypatch: pytest.MonkeyPatch) -> JobRow:
    job_id = await submit(database, resources={"max_seconds": 5 * DAY})
    return await only(monkeypatch, SetDeadline(), database, job_id, lifecycle.CLAIM, run_seconds=0.0)


async def _cancelling(database: Database, monkeypatch: pytest.MonkeyPatch) -> JobRow:
    lease = await running(database)
    return await only(monkeypatch, SetDeadline(), database, lease.job_id, lifecycle.REQUEST_CANCEL)


@pytest.mark.parametrize(
    ("moved", "seconds"),
    [(_paused, PAUSED_SECONDS), (_delayed, 4 * DAY), (_claimed, 5 * DAY), (_cancelling, CANCEL_SECONDS)],
    ids=["paused", "queued after a delay", "leased", "cancelling"],
)
async def test_a_state_has_its_deadline(
    database: Database, monkeypatch: pytest.MonkeyPatch, moved: Any, seconds: float
) -> None:
    job = await moved(database, monkeypatch)
    assert job.deadline_at - job.status_at == pytest.approx(seconds, abs=5.0)  # two looks at the database's clock


async def test_a_pause_without_a_deadline_is_refused(database: Database) -> None:
    lease = await running(database)
    async with database.write() as session:
        with pytest.raises(ValueError, match="deadline_at"):
            await move(session, lease.job_id, lifecycle.REQUEST_PAUSE, "asked to pause")


def test_every_move_to_a_state_that_is_not_final_is_given_a_deadline_or_keeps_it() -> None:
    kept = {lifecycle.START}
    assert set(MOVES) == SetDeadline.moves | Finish.moves | kept
    assert not SetDeadline.moves & Finish.moves


async def test_a_final_state_has_no_deadline(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    job = await only(monkeypatch, Finish(), database, await submit(database), lifecycle.CANCEL_IDLE)
    assert job.deadline_at is None
    assert job.finished_at is not None


async def test_a_move_has_one_event_and_a_failure_is_an_error(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await running(database)
    before = len(await events(database, lease.job_id))
    given = {"token": lease.token, "data": {"why": "test"}}
    job = await only(monkeypatch, RecordEvent(), database, lease.job_id, lifecycle.FAIL, **given)
    [event] = (await events(database, lease.job_id))[before:]
    assert (event.seq, event.type, event.level, event.message) == (job.last_seq, "status", "error", "moved")
    assert event.data == {"from": "running", "to": "failed", "attempt": 1, "why": "test"}


async def test_workers_are_told_of_a_queued_job_when_it_is_due(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await running(database)
    told = len(await messages(database))
    given = {"token": lease.token, "delay": DAY}
    job = await only(monkeypatch, Enqueue(), database, lease.job_id, lifecycle.RETRY, **given)
    assert (await messages(database))[told:] == [{"job_id": job.id, "queue": job.queue}]
    assert job.next_run_at - job.status_at == pytest.approx(DAY, abs=5.0)
    assert Enqueue.moves == {step for step in MOVES if step.target == Status.QUEUED}


class RefuseBefore(Rule):
    """Refuses every move."""

    async def before(self, session: AsyncSession, change: rules.Change) -> None:
        raise PermissionError(change.job_id)


class RefuseAfter(Rule):
    """Fails once the move is written."""

    async def after(self, session: AsyncSession, change: rules.Change, job: JobRow) -> None:
        raise PermissionError(job.id)


@pytest.mark.parametrize("refusing", [RefuseBefore(), RefuseAfter()], ids=["before", "after"])
async def test_a_rule_that_raises_rolls_the_move_back(
    database: Database, monkeypatch: pytest.MonkeyPatch, refusing: Rule
) -> None:
    job_id = await submit(database)
    told = await messages(database)
    monkeypatch.setattr(moves, "RULES", (*RULES, refusing))

    async def claim() -> None:
        async with database.write() as session:
            await move(session, job_id, lifecycle.CLAIM, "claimed", lease_owner="worker-1")

    with pytest.raises(PermissionError, match=job_id):
        await claim()
    job = await load(database, job_id)
    assert (job.status, job.lease_token, job.lease_owner) == ("queued", 0, None)
    assert (len(await events(database, job_id)), await attempts(database, job_id)) == (1, [])
    assert await messages(database) == told


async def test_a_rule_may_add_a_condition_to_a_move(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    class OneAtATime(Rule):
        """A quota: a job is claimed only while no other one is held."""

        moves = frozenset({lifecycle.CLAIM})

        async def before(self, session: AsyncSession, change: rules.Change) -> None:
            held = select(JobRow.id).where(JobRow.status.in_(lifecycle.HELD)).correlate(None)
            change.conditions.append(~held.exists())

    monkeypatch.setattr(moves, "RULES", (*RULES, OneAtATime()))
    first: Lease = await running(database)
    second = await submit(database)
    async with database.write() as session:
        assert await move(session, second, lifecycle.CLAIM, "claimed", lease_owner="worker-2") is None
        await move(session, first.job_id, lifecycle.FAIL, "failed", token=first.token)
    assert (await must_claim(database)).job_id == second
