"""Steps of jobs under a lease."""

from __future__ import annotations

from app.core.database import Database
from app.jobs.leases import Lease
from app.jobs.reaper import Reaper
from tests.app.jobs.builders import (
    let_backoff_pass,
    let_lease_run_out,
    must_claim,
)
from worker.protocol import StepProgress


def at_step(step: int) -> StepProgress:
    return StepProgress(step=step, total_steps=100, epoch=0.1, samples_per_second=10.0, seconds_left=1.0)


async def lose(database: Database, lease: Lease) -> Lease:
    """Let the lease run out and another worker win the job."""
    await let_lease_run_out(database, lease.job_id)
    await Reaper(database, "reaper", 1.0, 1.0).sweep()
    await let_backoff_pass(database, lease.job_id)
    return await must_claim(database, "worker-2")
