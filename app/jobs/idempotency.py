"""Idempotency keys: one key creates at most one job, also with repeated and concurrent requests.

A key is a row that is written in the transaction which creates its job. So a request that is rejected, or whose process
dies, leaves no key behind, and requests with the same key wait for each other's row lock.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.core.database import is_lock_timeout, upsert
from app.core.errors import Invalid, WrongState
from app.jobs.tables import IdempotencyKey

RETRY_SECONDS = 1


def fingerprint(*parts: str) -> str:
    """Digest of a request; equal requests have equal digests."""
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()


async def reserve(session: AsyncSession, project_id: str, key: str, digest: str, keep_seconds: float) -> str | None:
    """Reserve the key for this request; returns the job's id if an earlier, equal request has created it.

    Waits for another transaction that has the key. Raises `Invalid` for a key that was used with another body,
    `WrongState` if that transaction takes too long.
    """
    mine = (IdempotencyKey.project_id == project_id, IdempotencyKey.key == key)
    await session.execute(delete(IdempotencyKey).where(*mine, IdempotencyKey.expires_at <= now()))
    fresh = {"project_id": project_id, "key": key, "fingerprint": digest, "job_id": None, "locked_until": 0.0}
    try:
        await upsert(session, IdempotencyKey, [{**fresh, "expires_at": now() + keep_seconds}], update=[])
    except OperationalError as error:
        if is_lock_timeout(error):
            raise _in_use(RETRY_SECONDS) from error
        raise
    row = (await session.scalars(select(IdempotencyKey).where(*mine).with_for_update())).one()
    if row.fingerprint != digest:
        raise Invalid(
            "idempotency_key_reused", "this idempotency key was used with another request", param="Idempotency-Key"
        )
    if row.job_id is None:
        await _require_free(session, row)
    return row.job_id


async def _require_free(session: AsyncSession, row: IdempotencyKey) -> None:
    """Reject a key held by a process of the previous version, which wrote it before creating the job."""
    moment = await session.scalar(select(now()))
    if moment is None or row.locked_until > moment:
        raise _in_use(math.ceil(row.locked_until - (moment or 0.0)))


def _in_use(seconds: int) -> WrongState:
    message = "the first request with this idempotency key is still running"
    return WrongState("idempotency_key_in_use", message, headers={"Retry-After": str(seconds)})


async def settle(session: AsyncSession, project_id: str, key: str, job_id: str) -> None:
    """Store the job that the request created."""
    row: tuple[Any, ...] = (IdempotencyKey.project_id == project_id, IdempotencyKey.key == key)
    await session.execute(update(IdempotencyKey).where(*row).values(job_id=job_id))
