"""One idempotency key makes at most one job, however often and however concurrently a request is sent."""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.core.database import upsert
from app.core.errors import Invalid, WrongState
from app.jobs.tables import IdempotencyKey

LOCK_SECONDS = 60.0
"""Time after which the first request is taken for dead, so that a repetition may do its work."""


def fingerprint(*parts: str) -> str:
    """Digest of what the client asked for; the same request always gives the same one."""
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()


async def reserve(session: AsyncSession, project_id: str, key: str, digest: str, keep_seconds: float) -> str | None:
    """Take the key for this request; returns the job's id if an earlier, equal request has made it.

    Raises `Invalid` for a key that was used with another body, `WrongState` while the first request still runs. The
    row that is taken is locked until the caller's transaction ends, and by `locked_until` after that.
    """
    await session.execute(delete(IdempotencyKey).where(IdempotencyKey.expires_at <= now()))
    fresh = {"project_id": project_id, "key": key, "fingerprint": digest, "job_id": None, "locked_until": 0.0}
    await upsert(session, IdempotencyKey, [{**fresh, "expires_at": now() + keep_seconds}], update=[])
    row = (await session.scalars(select(IdempotencyKey).where(*_row(project_id, key)).with_for_update())).one()
    if row.fingerprint != digest:
        raise Invalid(
            "idempotency_key_reused", "this idempotency key was used with another request", param="Idempotency-Key"
        )
    if row.job_id is not None:
        return row.job_id
    moment = await session.scalar(select(now()))
    if moment is None or row.locked_until > moment:
        raise WrongState("idempotency_key_in_use", "the first request with this idempotency key still runs")
    row.locked_until = moment + LOCK_SECONDS
    return None


async def settle(session: AsyncSession, project_id: str, key: str, job_id: str) -> None:
    """Remember the job that the request made, in the transaction that makes it."""
    await session.execute(update(IdempotencyKey).where(*_row(project_id, key)).values(job_id=job_id))


async def forget(session: AsyncSession, project_id: str, key: str) -> None:
    """Free the key of a request that was refused, so that the mended one may use it."""
    await session.execute(delete(IdempotencyKey).where(*_row(project_id, key), IdempotencyKey.job_id.is_(None)))


def _row(project_id: str, key: str) -> tuple[Any, ...]:
    return (IdempotencyKey.project_id == project_id, IdempotencyKey.key == key)
