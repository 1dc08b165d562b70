"""The reaper: moves jobs on that no worker or user will move.

Runs in every process of the API, one at a time by its own lease. Each rule below is one query for candidates and
one guarded move per candidate, so that two reapers, or a reaper and a worker, can never both act.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Select, delete, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.core.database import Database
from app.jobs import lifecycle
from app.jobs.lifecycle import HELD, Status
from app.jobs.moves import move
from app.jobs.requeue import give_up_out_of_time, settle_death
from app.jobs.tables import IdempotencyKey, JobRow
from app.jobs.turns import take_turn
from app.jobs.wake_up import wake_workers

BATCH = 100
REDISPATCH_SECONDS = 60.0
"""Time since the last wake-up of a queued job after which it is sent again: messages get lost."""
STOP_SECONDS = 30.0
"""Time after a deadline in which a live worker can receive it and end the attempt itself."""
SOONEST_SECONDS = 0.2
"""Shortest time between two rounds."""
LEASE_LOST = {
    "fault": "system",
    "code": "lease_lost",
    "message": "the worker's lease ran out",
    "param": None,
    "step": None,
}


@dataclass(frozen=True)
class Reaper:
    """Sweeps one database under the name `owner`."""

    database: Database
    owner: str
    every_seconds: float
    backoff_seconds: float

    async def sweep(self) -> bool:
        """Run one round unless another process does; returns whether it ran."""
        async with self.database.write() as session:
            if not await take_turn(session, "jobs", self.owner, 3 * self.every_seconds):
                return False
        for rule in (self._lost_leases, self._overdue_waits, self._overdue_stops, self._lost_wake_ups, self._old_keys):
            async with self.database.write() as session:
                await rule(session)
        return True

    async def pause(self) -> float:
        """Seconds to the next round: fewer if a lease expires before it, so that its job does not wait."""
        async with self.database.read() as session:
            expiry = select(func.min(JobRow.lease_expires_at) - now()).where(JobRow.status.in_(HELD))
            left = await session.scalar(expiry)
        return self.every_seconds if left is None else min(self.every_seconds, max(left, SOONEST_SECONDS))

    async def _lost_leases(self, session: AsyncSession) -> None:
        """Requeue or end the jobs of workers that died or were disconnected."""
        lost = select(JobRow).where(JobRow.status.in_(HELD), JobRow.lease_expires_at <= now())
        for job in await session.scalars(_batch(lost)):
            await settle_death(session, job, LEASE_LOST, self.backoff_seconds, lost=True)

    async def _overdue_waits(self, session: AsyncSession) -> None:
        """Expire jobs that waited too long, for a worker or for their user."""
        waiting = (Status.VALIDATING, Status.QUEUED, Status.PAUSED)
        overdue = select(JobRow).where(JobRow.status.in_(waiting), JobRow.deadline_at <= now())
        for job in await session.scalars(_batch(overdue)):
            message = f"was {job.status} for longer than allowed"
            error = {"fault": "deadline", "code": "expired", "message": message, "param": None, "step": None}
            await move(session, job.id, lifecycle.EXPIRE, message, error=error)

    async def _overdue_stops(self, session: AsyncSession) -> None:
        """Take jobs away from live workers that do not follow a request in time.

        The worker's next heartbeat finds another token or status and so ends the trainer.
        """
        overdue = select(JobRow).where(JobRow.status.in_(HELD), JobRow.deadline_at <= now() - STOP_SECONDS)
        for job in await session.scalars(_batch(overdue)):
            await self._take_away(session, job)

    async def _take_away(self, session: AsyncSession, job: JobRow) -> None:
        if job.status == Status.CANCELLING:
            await move(session, job.id, lifecycle.LOSE_CANCELLING, "cancelled", token=job.lease_token)
        elif job.status == Status.PAUSING:
            message = "paused without a new checkpoint"
            await move(session, job.id, lifecycle.LOSE_PAUSING, message, token=job.lease_token)
        else:
            await give_up_out_of_time(session, job)

    async def _lost_wake_ups(self, session: AsyncSession) -> None:
        """Send the wake-ups of queued jobs again."""
        queued = (JobRow.status == Status.QUEUED, JobRow.next_run_at <= now())
        overdue = select(JobRow).where(*queued, JobRow.dispatched_at <= now() - REDISPATCH_SECONDS)
        for job in await session.scalars(_batch(overdue)):
            await session.execute(update(JobRow).where(JobRow.id == job.id).values(dispatched_at=now()))
            wake_workers(session, job)

    async def _old_keys(self, session: AsyncSession) -> None:
        row = (IdempotencyKey.project_id, IdempotencyKey.key)
        old = select(*row).where(IdempotencyKey.expires_at <= now()).with_for_update(skip_locked=True)
        await session.execute(delete(IdempotencyKey).where(tuple_(*row).in_(old)))


def _batch(candidates: Select[JobRow]) -> Select[JobRow]:
    return candidates.order_by(JobRow.id).limit(BATCH).with_for_update(skip_locked=True)
