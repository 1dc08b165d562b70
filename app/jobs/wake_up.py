"""Wake-up messages for workers about queued jobs; sent by the outbox once the transaction has committed.

A message is a hint. Workers also poll, and the reaper repeats the message of a job that was not claimed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.outbox import handles, post
from app.jobs.tables import JobRow

if TYPE_CHECKING:
    from app.core.services import Services  # which imports FastAPI, and workers send messages too

DISPATCH = "dispatch"
"""Kind of the outbox messages that notify workers of a job: `job_id` and `queue`."""


def wake_workers(session: AsyncSession, job: JobRow) -> None:
    """Notify the workers of a queued job, once the transaction has committed and the job is due."""
    post(session, DISPATCH, {"job_id": job.id, "queue": job.queue}, available_at=job.next_run_at)


@handles(DISPATCH)
async def _dispatch(services: Services, payload: dict[str, Any]) -> None:
    await services.dispatcher.dispatch(payload["job_id"], payload["queue"])
