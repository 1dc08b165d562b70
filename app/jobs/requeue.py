"""What becomes of a job whose attempt ended by nobody's wish: the queue again, or its end.

Only what the job itself brings about may end it. Three causes are told apart:

* `trainer`: the trainer's own end (a crash, an exit, a hang, memory that ran out). It counts as a failure, is tried
  again after a growing pause up to `max_attempts` failures, and twice at one place with no new checkpoint is a poison
  job.
* `service`: something that the attempt stands on failed (store, hub, disk, a damaged object). It counts as a failure
  with the same pauses, and is never poison.
* `outside`: the lease was lost, or somebody killed the trainer or its machine. It counts as nothing; the job goes on at
  once, and only where that happens again and again within a minute after a pause. What bounds it is the job's deadline.
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
"""Outcomes of attempts that something outside ended."""
WINDOW_SECONDS = 60.0
FREE_RESTARTS = 5
"""So many interruptions within `WINDOW_SECONDS` cost no pause; further ones do, so that nothing spins."""
LONGEST_RESTART_PAUSE = 30.0


class Settlement(NamedTuple):
    """The move that an end leads to, and what is written with it."""

    move: Move
    message: str
    columns: dict[str, Any]
    """Of the job."""
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
    """Decide what becomes of a job whose attempt has died, and write it.

    `job` is the row as it was seen; the move is fenced by its token. `lost`: nobody of the attempt is left to tell.
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
    """Give back what a worker holds that is known to be dead, before its leases have run out."""
    held = select(JobRow).where(JobRow.status.in_(HELD), JobRow.lease_owner == owner).with_for_update(skip_locked=True)
    for job in await session.scalars(held):
        await settle_death(session, job, WORKER_DIED, backoff_seconds, lost=True)


async def give_up_out_of_time(session: AsyncSession, job: JobRow) -> JobRow | None:
    """Fail a job that workers have held for longer than its spec allows."""
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
    return Settlement(lifecycle.RETRY, f"{error['message']}; trying again", counted, delay)


def _after_interruption(error: dict[str, Any], delay: float, *, lost: bool) -> Settlement:
    again = lifecycle.LOSE if lost else lifecycle.INTERRUPT
    return Settlement(again, f"{error['message']}; going on, which counts as no failure", {}, delay)


async def _is_out_of_time(session: AsyncSession, job: JobRow) -> bool:
    """Whether workers have held the job for as long as they may: the bound on what counts as no failure."""
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
