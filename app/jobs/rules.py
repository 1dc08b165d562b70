"""Rules on the moves of a job: conditions and consequences of every move of a kind, for all callers.

A rule works in the transaction of the move: `before` the statement it may add conditions and columns, `after` it
the rule writes further rows. An exception ends the transaction, so that a move and its consequences are atomic. To add
a rule (a quota, an audit, a message to another system), write a class and add it to `RULES`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.jobs import lifecycle
from app.jobs.events import record
from app.jobs.lifecycle import FINAL, MOVES, Move, Status
from app.jobs.tables import AttemptRow, CheckpointRow, JobRow, PhaseRow
from app.jobs.wake_up import wake_workers

PAUSED_SECONDS = 30 * 86_400.0
"""Longest time that a job may stay paused before it expires."""
CANCEL_SECONDS = 60.0
"""Time in which a worker must stop a cancelled job; after that the reaper cancels it."""


@dataclass
class Change:
    """A move in preparation; rules add to `columns` and `conditions`."""

    job_id: str
    move: Move
    message: str
    token: int | None
    """Lease token that the caller has seen."""
    delay: float
    """Seconds before a job that is queued may be claimed."""
    data: dict[str, Any]
    """Further data of the move's event."""
    columns: dict[str, Any]
    """Columns of the job to set; initially those of the caller, which rules do not change."""
    conditions: list[ColumnElement[bool]] = field(default_factory=list)
    """Conditions on the job besides its status."""

    def set(self, **columns: Any) -> None:
        """Set columns, except those given by the caller."""
        self.columns = columns | self.columns


class Rule:
    """One rule; its docstring states the invariant that it enforces, or the race that it prevents."""

    moves: ClassVar[frozenset[Move]] = frozenset(MOVES)
    """The moves that it applies to."""

    async def before(self, session: AsyncSession, change: Change) -> None:
        """Add conditions and columns to the statement of the move, or raise to reject the move."""

    async def after(self, session: AsyncSession, change: Change, job: JobRow) -> None:
        """Write further rows after the move; `job` is the row after the move."""


def _moves_to(*targets: Status) -> frozenset[Move]:
    return frozenset(move for move in MOVES if move.target in targets)


class RequireLeaseToken(Rule):
    """A worker, or a reaper that has seen the job, may move it only under the current token: a stale one, whose job
    was claimed again meanwhile, updates no row."""

    moves = frozenset(move for move in MOVES if move.fenced)

    async def before(self, session: AsyncSession, change: Change) -> None:
        if change.token is None:
            raise ValueError("a fenced move needs a lease token")
        change.conditions.append(JobRow.lease_token == change.token)


class GrantLease(Rule):
    """A claim increments the token and the number of the attempt in its own statement, so that no two attempts have
    the same, and opens the attempt. The claimant sets `lease_owner` and `lease_expires_at`."""

    moves = frozenset({lifecycle.CLAIM})

    async def before(self, session: AsyncSession, change: Change) -> None:
        change.set(lease_token=JobRow.lease_token + 1, attempt=JobRow.attempt + 1, phase=None)

    async def after(self, session: AsyncSession, change: Change, job: JobRow) -> None:
        attempt = {"number": job.attempt, "token": job.lease_token, "worker": job.lease_owner, "start_step": job.step}
        session.add(AttemptRow(job_id=job.id, claimed_at=now(), **attempt))


class StartAtCheckpoint(Rule):
    """An attempt begins at the step of the job's newest checkpoint, so that its steps never fall below it."""

    moves = frozenset({lifecycle.CLAIM})

    async def before(self, session: AsyncSession, change: Change) -> None:
        newest = select(CheckpointRow.step).where(CheckpointRow.id == JobRow.checkpoint_id).correlate(JobRow)
        change.set(step=func.coalesce(newest.scalar_subquery(), 0))


class EndAttempt(Rule):
    """A move that takes the job from its worker ends the lease, the attempt and its open phase, and counts the time
    that the job was held: no lease outlives its attempt, and all attempts share one time limit."""

    moves = frozenset(move for move in MOVES if move.outcome is not None)

    async def before(self, session: AsyncSession, change: Change) -> None:
        mine = (AttemptRow.job_id == JobRow.id, AttemptRow.number == JobRow.attempt)
        claimed_at = select(AttemptRow.claimed_at).where(*mine).correlate(JobRow).scalar_subquery()
        change.set(run_seconds=JobRow.run_seconds + (now() - claimed_at))
        change.set(lease_owner=None, lease_expires_at=None, seconds_left=None, phase=None)

    async def after(self, session: AsyncSession, change: Change, job: JobRow) -> None:
        mine = (AttemptRow.job_id == job.id, AttemptRow.number == job.attempt)
        await session.execute(update(AttemptRow).where(*mine).values(ended_at=now(), outcome=change.move.outcome))
        open_phases = (PhaseRow.job_id == job.id, PhaseRow.attempt == job.attempt, PhaseRow.ended_at.is_(None))
        await session.execute(update(PhaseRow).where(*open_phases).values(ended_at=now()))


class CountInterruption(Rule):
    """An attempt ended by an external cause is counted separately from failures: it does not use up an attempt."""

    moves = frozenset({lifecycle.LOSE, lifecycle.INTERRUPT})

    async def before(self, session: AsyncSession, change: Change) -> None:
        change.set(interruptions=JobRow.interruptions + 1)


class SetDeadline(Rule):
    """Every state that is not final has a deadline, so that no job stays in it for ever. A start keeps the deadline of
    its claim: workers may hold a job for `max_seconds` over all attempts."""

    moves = _moves_to(Status.QUEUED, Status.LEASED, Status.PAUSING, Status.PAUSED, Status.CANCELLING)

    async def before(self, session: AsyncSession, change: Change) -> None:
        resources = JobRow.spec["resources"]
        match change.move.target:
            case Status.QUEUED:
                change.set(deadline_at=now() + (change.delay + resources["max_queue_seconds"].as_float()))
            case Status.LEASED:
                change.set(deadline_at=now() + (resources["max_seconds"].as_float() - JobRow.run_seconds))
            case Status.PAUSED:
                change.set(deadline_at=now() + PAUSED_SECONDS)
            case Status.CANCELLING:
                change.set(deadline_at=now() + CANCEL_SECONDS)
            case _ if "deadline_at" not in change.columns:
                raise ValueError("a request to pause needs a deadline_at")


class Finish(Rule):
    """A final state is never left: it has no deadline, and records the time at which it was entered."""

    moves = _moves_to(*FINAL)

    async def before(self, session: AsyncSession, change: Change) -> None:
        change.set(deadline_at=None, finished_at=now())


class RecordEvent(Rule):
    """Every change of status has exactly one event. The statement of the move increments its number, so that numbers
    are unique and without gaps."""

    async def before(self, session: AsyncSession, change: Change) -> None:
        change.set(last_seq=JobRow.last_seq + 1)

    async def after(self, session: AsyncSession, change: Change, job: JobRow) -> None:
        level = "error" if change.move.target == Status.FAILED else "info"
        data = {"from": job.previous_status, "to": job.status, "attempt": job.attempt, **change.data}
        record(session, job, "status", change.message, level, data)


class Enqueue(Rule):
    """A queued job is due after the move's delay, and workers are notified then, not before the commit: a worker that
    is notified of a job finds it."""

    moves = _moves_to(Status.QUEUED)

    async def before(self, session: AsyncSession, change: Change) -> None:
        due = now() + change.delay
        change.set(next_run_at=due, dispatched_at=due)

    async def after(self, session: AsyncSession, change: Change, job: JobRow) -> None:
        wake_workers(session, job)


RULES: tuple[Rule, ...] = (
    RequireLeaseToken(),
    GrantLease(),
    StartAtCheckpoint(),
    EndAttempt(),
    CountInterruption(),
    SetDeadline(),
    Finish(),
    RecordEvent(),
    Enqueue(),
)
"""All rules, in the order in which they act on a move."""
