"""A worker's lease of a job: the claim, heartbeats, and the ends of an attempt, all under the claim's lease token.

Every function works in the caller's transaction and raises `LeaseLost` if the token is no longer the current one:
then the worker must stop at once and discard its results. `app.jobs.reporting` and `app.jobs.publishing` write the
data of an attempt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Select, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.jobs import lifecycle
from app.jobs.events import record
from app.jobs.lifecycle import HELD, Move, Status
from app.jobs.moves import move
from app.jobs.requeue import Cause, settle_death
from app.jobs.tables import AttemptRow, CheckpointRow, JobRow
from app.recipe.job import JobSpec

Fault = Literal["user", "system", "capacity", "deadline"]


class LeaseLost(Exception):
    """The lease of the job has expired or was taken by another attempt."""


@dataclass(frozen=True)
class StoredFile:
    """A file in the object store; `name` is its name within its bundle or checkpoint."""

    name: str
    key: str
    size: int
    sha256: str
    media_type: str = "application/octet-stream"


@dataclass(frozen=True)
class CheckpointRef:
    """A published checkpoint to resume from."""

    id: str
    step: int
    files: list[StoredFile] = field(default_factory=list)


@dataclass(frozen=True)
class Lease:
    """The right to run a job until `seconds` after the last heartbeat."""

    job_id: str
    project_id: str
    token: int
    attempt: int
    owner: str
    spec: JobSpec
    seconds: float
    checkpoint: CheckpointRef | None


class Orders(NamedTuple):
    """Requests to the worker in the reply to a heartbeat."""

    cancel: bool
    pause: bool
    out_of_time: bool


async def claim(
    session: AsyncSession,
    *,
    owner: str,
    queues: Sequence[str],
    lease_seconds: float,
    job_id: str | None = None,
    gpus: int = 1,
    nodes: int = 1,
) -> Lease | None:
    """Claim the given job, or the first of the queues (highest priority, then oldest); none if there is none.

    Only jobs for at most `nodes` machines and, in the queue `gpu`, at most `gpus` on each are claimed.
    """
    candidate = await session.scalar(_claimable(queues, job_id, gpus, nodes))
    if candidate is None:
        return None
    job = await move(
        session,
        candidate,
        lifecycle.CLAIM,
        f"claimed by {owner}",
        lease_owner=owner,
        lease_expires_at=now() + lease_seconds,
    )
    if job is None:
        return None
    checkpoint = await session.get(CheckpointRow, job.checkpoint_id) if job.checkpoint_id else None
    return Lease(
        job_id=job.id,
        project_id=job.project_id,
        token=job.lease_token,
        attempt=job.attempt,
        owner=owner,
        spec=JobSpec.model_validate(job.spec),
        seconds=lease_seconds,
        checkpoint=_checkpoint_ref(checkpoint) if checkpoint else None,
    )


def _claimable(queues: Sequence[str], job_id: str | None, gpus: int, nodes: int) -> Select[str]:
    # Read from the document; jobs of older versions have no number.
    processes = func.coalesce(JobRow.spec["resources"]["processes"].as_integer(), 1)
    machines = func.coalesce(JobRow.spec["resources"]["nodes"].as_integer(), 1)
    statement = (
        select(JobRow.id)
        .where(JobRow.status == Status.QUEUED, JobRow.queue.in_(queues), JobRow.next_run_at <= now())
        .where(or_(JobRow.queue != "gpu", processes <= gpus), machines <= nodes)
        .order_by(JobRow.priority.desc(), JobRow.id)
        .limit(1)
        .with_for_update(skip_locked=True)  # SQLite ignores this: its writers run one after the other
    )
    return statement if job_id is None else statement.where(JobRow.id == job_id)


def _checkpoint_ref(row: CheckpointRow) -> CheckpointRef:
    return CheckpointRef(row.id, row.step, [StoredFile(**file) for file in row.files])


async def beat(session: AsyncSession, lease: Lease, *conditions: ColumnElement[bool], **columns: Any) -> Orders:
    """Extend the lease; returns the requests made meanwhile.

    `columns` of the job are set by the same statement; raises `LeaseLost` also if it does not meet the `conditions`.
    """
    statement = (
        update(JobRow)
        .where(*_held(lease), *conditions)
        .values(lease_expires_at=now() + lease.seconds, **columns)
        .returning(JobRow.status, JobRow.deadline_at, now())
        .execution_options(synchronize_session=False)
    )
    row = (await session.execute(statement)).one_or_none()
    if row is None:
        raise LeaseLost(lease.job_id)
    status, deadline_at, moment = row
    working = status in (Status.LEASED, Status.RUNNING)
    return Orders(status == Status.CANCELLING, status == Status.PAUSING, working and moment >= (deadline_at or moment))


async def start(session: AsyncSession, lease: Lease, total_steps: int | None = None) -> None:
    """Record that the trainer has started. A job that is being cancelled or paused stays so; the next heartbeat
    returns the request."""
    values: dict[str, Any] = {"started_at": func.coalesce(JobRow.started_at, now())}
    if total_steps is not None:
        values["total_steps"] = total_steps
    job = await move(session, lease.job_id, lifecycle.START, "running", token=lease.token, **values)
    if job is None:
        await beat(session, lease)
    mine = (AttemptRow.job_id == lease.job_id, AttemptRow.number == lease.attempt)
    await session.execute(update(AttemptRow).where(*mine).values(started_at=now()))


async def fail(
    session: AsyncSession,
    lease: Lease,
    *,
    fault: Fault,
    code: str,
    message: str,
    param: str | None = None,
    step: int | None = None,
    cause: Cause = "trainer",
    backoff_seconds: float = 5.0,
) -> None:
    """End the attempt with a failure. A failure by the user ends the job; `app.jobs.requeue` handles the others."""
    error = {"fault": fault, "code": code, "message": message, "param": param, "step": step}
    job = await session.scalar(select(JobRow).where(*_held(lease)).with_for_update())
    if job is None:
        raise LeaseLost(lease.job_id)
    if fault in ("system", "capacity"):
        await settle_death(session, job, error, backoff_seconds, cause=cause)
    else:
        await fenced(session, lease, lifecycle.FAIL, message, data={"error": error}, error=error)


async def cancelled(session: AsyncSession, lease: Lease) -> None:
    """End the attempt of a job whose trainer was stopped because its user cancelled it."""
    await fenced(session, lease, lifecycle.CANCEL, "cancelled")


async def paused(session: AsyncSession, lease: Lease) -> None:
    """End the attempt of a job whose trainer was stopped, after a checkpoint, because its user paused it."""
    await fenced(session, lease, lifecycle.PAUSE, "paused")


async def release(session: AsyncSession, lease: Lease, reason: str) -> None:
    """Return the job to the queue: another worker can resume at once, and no failure is counted."""
    job = await session.scalar(select(JobRow).where(*_held(lease)).with_for_update())
    if job is None:
        raise LeaseLost(lease.job_id)
    if job.status == Status.CANCELLING:
        await cancelled(session, lease)
    elif job.status == Status.PAUSING:
        await paused(session, lease)
    else:
        await fenced(session, lease, lifecycle.RELEASE, f"handed back: {reason}")


async def fenced(session: AsyncSession, lease: Lease, step: Move, message: str, **columns: Any) -> JobRow:
    """Make a move under the lease."""
    job = await move(session, lease.job_id, step, message, token=lease.token, **columns)
    if job is None:
        raise LeaseLost(lease.job_id)
    return job


async def emit(
    session: AsyncSession,
    lease: Lease,
    type: str,
    message: str,
    level: str = "info",
    data: dict[str, Any] | None = None,
    **columns: Any,
) -> None:
    """Record an event without a change of status; `columns` of the job are set by the same statement."""
    statement = (
        update(JobRow)
        .where(*_held(lease))
        .values(last_seq=JobRow.last_seq + 1, **columns)
        .returning(JobRow)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    job = (await session.scalars(statement)).one_or_none()
    if job is None:
        raise LeaseLost(lease.job_id)
    record(session, job, type, message, level, {"attempt": job.attempt, **(data or {})})


def _held(lease: Lease) -> tuple[ColumnElement[bool], ...]:
    return (JobRow.id == lease.job_id, JobRow.lease_token == lease.token, JobRow.status.in_(HELD))
