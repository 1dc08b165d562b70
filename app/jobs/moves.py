"""The one place where a job's status changes.

A move is a single `UPDATE … WHERE id AND status IN (sources)`, with the conditions and columns of its rules, followed
by the writes of these rules, in the caller's transaction. If no row is updated, the move is not legal now, or the
caller's lease is no longer the current one; then nothing has changed.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.jobs.lifecycle import Move
from app.jobs.rules import RULES, Change
from app.jobs.tables import JobRow


async def move(
    session: AsyncSession,
    job_id: str,
    step: Move,
    message: str,
    /,
    *,
    token: int | None = None,
    delay: float = 0.0,
    data: dict[str, Any] | None = None,
    **columns: Any,
) -> JobRow | None:
    """Make one move under the rules of `app.jobs.rules`; the job as it is now, or none if the move was not legal.

    `message` and `data` are those of the move's event. `token` is the lease token of a fenced move. A job that is
    queued is not claimed before `delay` seconds have passed. `columns` of the job are set by the same statement, and
    take precedence over those of the rules. Exceptions of rules propagate: the caller's transaction must then be
    rolled back.
    """
    change = Change(job_id, step, message, token, delay, data or {}, columns)
    rules = [rule for rule in RULES if step in rule.moves]
    for rule in rules:
        await rule.before(session, change)
    statement = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.status.in_(step.sources), *change.conditions)
        .values(status=step.target, previous_status=JobRow.status, status_at=now())
        .values(**change.columns)
        .returning(JobRow)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    job = (await session.scalars(statement)).one_or_none()
    if job is None:
        return None
    for rule in rules:
        await rule.after(session, change, job)
    return job
