"""Handling of a job whose attempt ended unintentionally: back to the queue, or its end.

Only causes within the job itself may end it. There are three causes:

* `trainer`: the trainer ended (a crash, an exit, a hang, out of memory). It counts as a failure, is retried after a
  growing pause up to `max_attempts` failures, and twice at one place with no new checkpoint makes a poison job.
* `service`: a dependency of the attempt failed (store, hub, disk, a damaged object). It counts as a failure with the
  same pauses, and is never poison.
* `outside`: the lease was lost, or the trainer or its machine was killed. It is not counted as a failure; the job is
  resumed at once, or after a pause if it was interrupted repeatedly within a minute. The job's deadline is the limit.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.jobs import lifecycle
from app.jobs.lifecycle import HELD, Move, Status
from app.jobs.moves import move
from app.jobs.tables import AttemptRow, JobRow

Cause = Literal["trainer", "service", "outside"]
LONGEST_PAUSE = 600.0
"""Longest pause after a failure, in seconds."""
WORKER_DIED = {"fault": "system", "code": "worker_died", "message": "its worker died", "param": None, "step": None}
INTERRUPTED = ("lost", "interrupted")
"""Outcomes of attempts that were ended by an external cause."""
WINDOW_SECONDS = 60.0
FREE_RESTARTS = 5
"""Interruptions within `WINDOW_SECONDS` without a pause; further ones have one, to avoid a busy loop."""
LONGEST_RESTART_PAUSE = 30.0


class Settlement(NamedTuple):
    """The move after the end of an attempt, and the columns written with it."""

    move: Move
    message: str
    columns: dict[str, Any]
    """Columns of the job."""
    delay: float = 0.0
    """Seconds before the job may be claimed again."""


async def settle_death(
    session: AsyncSession,
    job: JobRow,
    error: dict[str, Any],
    backoff_seconds: float,
    *,
    cause: Cause = "outside",
    lost: bool = False,
) -> JobRow | None:
    """Requeue or end a job whose attempt has died.

    `job` is the row as it was seen; the move is fenced by its token. `lost`: no
    process of the attempt is left to report its end.
    """
    if job.status == Status.CANCELLING:
        return await move(session, job.id, lifecycle.LOSE_CANCELLING, "cancelled", token=job.lease_token)
    if job.status == Status.PAUSING:
        message = "paused; its worker was lost"
        return await move(session, job.id, lifecycle.LOSE_PAUSING, message, token=job.lease_token)
    if await _is_out_of_time(session, job):
        return await give_up_out_of_time(session, job)
    if cause == "outside":
        pause = await _restart_pause(session, job, backoff_seconds)
        step, message, columns, delay = _after_interruption(error, pause, lost=lost)
    else:
        step, message, columns, delay = _after_failure(job, error, backoff_seconds, cause=cause)
    token, data = job.lease_token, {"error": error}
    return await move(session, job.id, step, message, token=token, delay=delay, data=data, **columns)


async def disown(session: AsyncSession, owner: str, backoff_seconds: float) -> None:
    """Requeue the jobs of a worker that is known to be dead, before its leases expire."""
    held = select(JobRow).where(JobRow.status.in_(HELD), JobRow.lease_owner == owner).with_for_update(skip_locked=True)
    for job in await session.scalars(held):
        await settle_death(session, job, WORKER_DIED, backoff_seconds, lost=True)


async def give_up_out_of_time(session: AsyncSession, job: JobRow) -> JobRow | None:
    """Fail a job that workers have held for longer than `max_seconds`."""
    message = "ran for longer than resources.max_seconds"
    error = {"fault": "deadline", "code": "out_of_time", "message": message, "param": "resources.max_seconds"}
    return await move(
        session, job.id, lifecycle.GIVE_UP, message, token=job.lease_token, error={**error, "step": job.step}
    )


def _after_failure(job: JobRow, error: dict[str, Any], backoff_seconds: float, *, cause: Cause) -> Settlement:
    failures = job.failures + 1
    counted: dict[str, Any] = {"failures": failures}
    if cause == "trainer":
        running = job.status == Status.RUNNING
        counted |= {"death_step": job.step if running else None, "death_phase": job.phase if running else None}
        counted["death_checkpoint_id"] = job.checkpoint_id
    if cause == "trainer" and _is_poison(job):
        where = f"at step {job.step}" + (f" while {job.phase}" if job.phase not in (None, "training") else "")
        poison = {**error, "code": "poison_job", "message": f"died twice {where}: {error['message']}"}
        return Settlement(lifecycle.FAIL, poison["message"], {**counted, "error": poison})
    if failures >= job.max_attempts:
        return Settlement(lifecycle.FAIL, f"{error['message']}; no attempt is left", {**counted, "error": error})
    delay = min(backoff_seconds * 2 ** (failures - 1), LONGEST_PAUSE)
    return Settlement(lifecycle.RETRY, f"{error['message']}; retrying", counted, delay)


def _after_interruption(error: dict[str, Any], delay: float, *, lost: bool) -> Settlement:
    again = lifecycle.LOSE if lost else lifecycle.INTERRUPT
    return Settlement(again, f"{error['message']}; resuming, not counted as a failure", {}, delay)


async def _is_out_of_time(session: AsyncSession, job: JobRow) -> bool:
    """Whether workers have held the job for its full time: the limit on interruptions."""
    moment = await session.scalar(select(now()))
    return moment is not None and job.deadline_at is not None and moment >= job.deadline_at


async def _restart_pause(session: AsyncSession, job: JobRow, backoff_seconds: float) -> float:
    recent = (
        AttemptRow.job_id == job.id,
        AttemptRow.outcome.in_(INTERRUPTED),
        AttemptRow.ended_at > now() - WINDOW_SECONDS,
    )
    count = await session.scalar(select(func.count()).select_from(AttemptRow).where(*recent)) or 0
    if count < FREE_RESTARTS:
        return 0.0
    return float(min(backoff_seconds * 2 ** (count - FREE_RESTARTS), LONGEST_RESTART_PAUSE))


def _is_poison(job: JobRow) -> bool:
    here = (job.step, job.phase, job.checkpoint_id)
    before = (job.death_step, job.death_phase, job.death_checkpoint_id)
    return job.status == Status.RUNNING and job.death_step is not None and before == here
