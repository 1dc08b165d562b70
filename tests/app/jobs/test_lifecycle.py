"""The table of legal moves, and what every move leaves behind."""

from __future__ import annotations

import pytest

from app.core.database import Database
from app.jobs import lifecycle
from app.jobs.lifecycle import FINAL, HELD, MOVES, Status
from app.jobs.moves import move
from tests.app.jobs.builders import events, load, must_claim, submit


def test_no_move_leaves_a_final_state() -> None:
    assert not any(step.sources & FINAL for step in MOVES)


def test_every_state_can_be_reached_and_every_other_one_can_be_left() -> None:
    assert {step.target for step in MOVES} | {Status.VALIDATING} == set(Status)
    assert set().union(*(step.sources for step in MOVES)) == set(Status) - FINAL


def test_a_held_job_leaves_its_worker_only_by_fenced_moves() -> None:
    leaving = [step for step in MOVES if step.sources & HELD and step.target not in HELD]
    assert leaving
    assert all(step.fenced and step.outcome for step in leaving)


def test_every_non_final_state_has_a_way_to_end_without_its_worker_or_user() -> None:
    reaper = (
        lifecycle.LOSE,
        lifecycle.GIVE_UP,
        lifecycle.LOSE_CANCELLING,
        lifecycle.LOSE_PAUSING,
        lifecycle.EXPIRE,
    )
    assert set().union(*(step.sources for step in reaper)) == set(Status) - FINAL


async def test_a_move_writes_one_event_with_where_from_and_where_to(database: Database) -> None:
    job_id = await submit(database)
    await must_claim(database)
    changes = [(event.seq, event.data["from"], event.data["to"]) for event in await events(database, job_id)]
    assert changes == [(1, "validating", "queued"), (2, "queued", "leased")]


async def test_an_illegal_move_changes_nothing(database: Database) -> None:
    job_id = await submit(database)
    async with database.write() as session:
        assert await move(session, job_id, lifecycle.START, "running", token=0) is None
        assert await move(session, job_id, lifecycle.RESUME, "resumed") is None
    job = await load(database, job_id)
    assert (job.status, job.last_seq) == (Status.QUEUED, 1)


async def test_a_fenced_move_with_another_token_changes_nothing(database: Database) -> None:
    await submit(database)
    lease = await must_claim(database)
    async with database.write() as session:
        assert await move(session, lease.job_id, lifecycle.START, "running", token=lease.token - 1) is None
        assert await move(session, lease.job_id, lifecycle.START, "running", token=lease.token + 1) is None
    assert (await load(database, lease.job_id)).status == Status.LEASED


async def test_a_fenced_move_without_a_token_is_refused(database: Database) -> None:
    job_id = await submit(database)
    async with database.write() as session:
        with pytest.raises(ValueError, match="token"):
            await move(session, job_id, lifecycle.START, "running")


async def test_a_rolled_back_transaction_leaves_neither_move_nor_event(database: Database) -> None:
    job_id = await submit(database)

    async def cancel_then_break() -> None:
        async with database.write() as session:
            await move(session, job_id, lifecycle.CANCEL_IDLE, "cancelled")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await cancel_then_break()
    job = await load(database, job_id)
    assert (job.status, len(await events(database, job_id))) == (Status.QUEUED, 1)
