"""Reports of a worker on the training of its job: phases, progress, metrics, and lines of its log.

Every function works in the caller's transaction and raises `LeaseLost` if the lease is no longer the current one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.core.database import upsert
from app.jobs.leases import Lease, Orders, beat, emit
from app.jobs.tables import JobRow, Metric, PhaseRow

PROGRESS = ("step", "total_steps", "epoch", "samples_per_second", "seconds_left")
"""Columns of a job that are fields of a `TrainingProgress`."""


class TrainingProgress(Protocol):
    """Progress of training; `worker.protocol.StepProgress` is one."""

    @property
    def step(self) -> int: ...
    @property
    def total_steps(self) -> int: ...
    @property
    def epoch(self) -> float: ...
    @property
    def samples_per_second(self) -> float: ...
    @property
    def seconds_left(self) -> float | None: ...


async def begin_phase(session: AsyncSession, lease: Lease, phase: str) -> None:
    """End the open phase and begin the next."""
    await emit(session, lease, "phase", phase, data={"phase": phase}, phase=phase)
    open_phases = (PhaseRow.job_id == lease.job_id, PhaseRow.attempt == lease.attempt, PhaseRow.ended_at.is_(None))
    await session.execute(update(PhaseRow).where(*open_phases).values(ended_at=now()))
    row = {"job_id": lease.job_id, "attempt": lease.attempt, "phase": phase, "started_at": now(), "ended_at": None}
    await upsert(session, PhaseRow, [row], update=["ended_at"])


async def record(
    session: AsyncSession, lease: Lease, progress: TrainingProgress | None, metrics: Sequence[tuple[str, int, float]]
) -> Orders:
    """Write progress and measured values `(name, step, value)`, and extend the lease.

    Published steps of an attempt never decrease: a smaller step raises `LeaseLost`.
    """
    if progress is None:
        orders = await beat(session, lease)
    else:
        columns = {name: getattr(progress, name) for name in PROGRESS}
        orders = await beat(session, lease, JobRow.step <= progress.step, progress_at=now(), **columns)
    rows = {
        (name, step): {"job_id": lease.job_id, "name": name, "attempt": lease.attempt, "step": step, "value": value}
        for name, step, value in metrics
    }
    if rows:
        await upsert(session, Metric, list(rows.values()), update=["value"])
    return orders


async def log(session: AsyncSession, lease: Lease, message: str, level: str = "info") -> None:
    """Add a line of the trainer's log to the job's events."""
    await emit(session, lease, "log", message, level)
