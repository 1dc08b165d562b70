"""The one place where a job's status changes: the table of legal moves, and `move`, which makes one.

A move is a single `UPDATE … WHERE id AND status IN (sources) [AND lease_token = mine]` and one event row, in the
caller's transaction. No row updated means that the move is not legal now, or that the caller's lease is no longer the
current one; then nothing has happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.jobs.tables import AttemptRow, EventRow, JobRow, PhaseRow


class Status(StrEnum):
    """Where a job stands."""

    VALIDATING = "validating"
    QUEUED = "queued"
    LEASED = "leased"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


FINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED})
"""States that are never left."""
HELD = frozenset({Status.LEASED, Status.RUNNING, Status.PAUSING, Status.CANCELLING})
"""States in which a worker holds a lease."""


@dataclass(frozen=True)
class Move:
    """A legal change of status. A fenced one is made by a worker, and only under the current lease token."""

    sources: frozenset[Status]
    target: Status
    fenced: bool = False
    outcome: str | None = None
    """How the attempt ended, for moves that take the job from its worker."""


def _from(*sources: Status) -> frozenset[Status]:
    return frozenset(sources)


_S = Status
ADMIT = Move(_from(_S.VALIDATING), _S.QUEUED)
CLAIM = Move(_from(_S.QUEUED), _S.LEASED)  # two workers, one job: the second finds it no longer queued
START = Move(_from(_S.LEASED), _S.RUNNING, fenced=True)

# A worker may finish while a request to cancel or pause is on its way to it: what is done counts.
SUCCEED = Move(HELD - {_S.LEASED}, _S.SUCCEEDED, fenced=True, outcome="succeeded")
FAIL = Move(HELD, _S.FAILED, fenced=True, outcome="failed")
RETRY = Move(_from(_S.LEASED, _S.RUNNING), _S.QUEUED, fenced=True, outcome="failed")
INTERRUPT = Move(_from(_S.LEASED, _S.RUNNING), _S.QUEUED, fenced=True, outcome="interrupted")
RELEASE = Move(_from(_S.LEASED, _S.RUNNING), _S.QUEUED, fenced=True, outcome="released")
PAUSE = Move(_from(_S.PAUSING), _S.PAUSED, fenced=True, outcome="paused")
CANCEL = Move(_from(_S.CANCELLING), _S.CANCELLED, fenced=True, outcome="cancelled")

# Requests of users. A job that no worker holds is cancelled or paused at once.
CANCEL_IDLE = Move(_from(_S.VALIDATING, _S.QUEUED, _S.PAUSED), _S.CANCELLED)
REQUEST_CANCEL = Move(_from(_S.LEASED, _S.RUNNING, _S.PAUSING), _S.CANCELLING)
PAUSE_IDLE = Move(_from(_S.QUEUED), _S.PAUSED)
REQUEST_PAUSE = Move(_from(_S.LEASED, _S.RUNNING), _S.PAUSING)
RESUME = Move(_from(_S.PAUSED), _S.QUEUED)

# The reaper's. They name the token that was seen, so that a worker which has just won the job anew keeps it.
LOSE = Move(_from(_S.LEASED, _S.RUNNING), _S.QUEUED, fenced=True, outcome="lost")
GIVE_UP = Move(_from(_S.LEASED, _S.RUNNING), _S.FAILED, fenced=True, outcome="lost")
LOSE_CANCELLING = Move(_from(_S.CANCELLING), _S.CANCELLED, fenced=True, outcome="lost")
LOSE_PAUSING = Move(_from(_S.PAUSING), _S.PAUSED, fenced=True, outcome="lost")
EXPIRE = Move(_from(_S.VALIDATING, _S.QUEUED, _S.PAUSED), _S.EXPIRED)

MOVES = (
    *(ADMIT, CLAIM, START, SUCCEED, FAIL, RETRY, INTERRUPT, RELEASE, PAUSE, CANCEL),
    *(CANCEL_IDLE, REQUEST_CANCEL, PAUSE_IDLE, REQUEST_PAUSE, RESUME),
    *(LOSE, GIVE_UP, LOSE_CANCELLING, LOSE_PAUSING, EXPIRE),
)
"""Every move there is."""


async def move(
    session: AsyncSession,
    job_id: str,
    step: Move,
    message: str,
    *,
    token: int | None = None,
    data: dict[str, Any] | None = None,
    **values: Any,
) -> JobRow | None:
    """Make one move and record it; returns the job as it now is, or none if the move was not legal.

    `values` are further columns of the job to set in the same statement.
    """
    if step.fenced and token is None:
        raise ValueError("a fenced move needs a lease token")
    statement = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.status.in_(step.sources))
        .values(
            status=step.target,
            previous_status=JobRow.status,
            status_at=now(),
            last_seq=JobRow.last_seq + 1,
            **_consequences(step),
        )
        .values(**values)
        .returning(JobRow)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    if step.fenced:
        statement = statement.where(JobRow.lease_token == token)
    job = (await session.scalars(statement)).one_or_none()
    if job is None:
        return None
    change = {"from": job.previous_status, "to": job.status, "attempt": job.attempt, **(data or {})}
    _record(session, job, "status", message, "error" if step.target == Status.FAILED else "info", change)
    if step.outcome is not None:
        await _end_attempt(session, job, step.outcome)
    return job


async def emit(
    session: AsyncSession,
    job_id: str,
    token: int,
    type: str,
    message: str,
    level: str,
    data: dict[str, Any],
    **values: Any,
) -> JobRow | None:
    """Record an event that is no change of status, under a lease token; none if the token is not the current one."""
    statement = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.lease_token == token, JobRow.status.in_(HELD))
        .values(last_seq=JobRow.last_seq + 1, **values)
        .returning(JobRow)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    job = (await session.scalars(statement)).one_or_none()
    if job is not None:
        _record(session, job, type, message, level, {"attempt": job.attempt, **data})
    return job


def _consequences(step: Move) -> dict[str, Any]:
    """Columns that follow from where a move leads."""
    values: dict[str, Any] = {}
    if step.outcome is not None:
        claimed_at = (
            select(AttemptRow.claimed_at)
            .where(AttemptRow.job_id == JobRow.id, AttemptRow.number == JobRow.attempt)
            .correlate(JobRow)
            .scalar_subquery()
        )
        held = {"run_seconds": JobRow.run_seconds + (now() - claimed_at)}
        values |= held | {"lease_owner": None, "lease_expires_at": None, "seconds_left": None, "phase": None}
    if step.target in FINAL:
        values |= {"deadline_at": None, "finished_at": now()}
    return values


def _record(session: AsyncSession, job: JobRow, type: str, message: str, level: str, data: dict[str, Any]) -> None:
    session.add(
        EventRow(
            job_id=job.id,
            seq=job.last_seq,
            type=type,
            level=level,
            message=message[:2048],
            data=data,
            created_at=now(),
        )
    )


async def _end_attempt(session: AsyncSession, job: JobRow, outcome: str) -> None:
    mine = (AttemptRow.job_id == job.id, AttemptRow.number == job.attempt)
    await session.execute(update(AttemptRow).where(*mine).values(ended_at=now(), outcome=outcome))
    open_phases = (PhaseRow.job_id == job.id, PhaseRow.attempt == job.attempt, PhaseRow.ended_at.is_(None))
    await session.execute(update(PhaseRow).where(*open_phases).values(ended_at=now()))
