"""Events of a job: numbered without gaps, written in the transaction of the change that they report."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.jobs.tables import EventRow, JobRow

MESSAGE_CHARACTERS = 2048
"""Length to which messages are truncated."""


def record(session: AsyncSession, job: JobRow, type: str, message: str, level: str, data: dict[str, Any]) -> None:
    """Add the event whose number is the job's `last_seq`, which the caller has just incremented."""
    session.add(
        EventRow(
            job_id=job.id,
            seq=job.last_seq,
            type=type,
            level=level,
            message=message[:MESSAGE_CHARACTERS],
            data=data,
            created_at=now(),
        )
    )
