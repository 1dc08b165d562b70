"""Housekeeping that one process does at a time, however many there are."""

from __future__ import annotations

from sqlalchemy import or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.core.database import upsert
from app.jobs.tables import SweepLease


async def take_turn(session: AsyncSession, name: str, owner: str, seconds: float) -> bool:
    """Take or keep the right to do the housekeeping `name`, for so many seconds; false while another process has it."""
    fresh = {"name": name, "owner": owner, "expires_at": 0.0}
    await upsert(session, SweepLease, [fresh], update=[])
    free = or_(SweepLease.owner == owner, SweepLease.expires_at <= now())
    # Skipped while another process has the row: one that is frozen must not keep all others waiting.
    mine = select(SweepLease.name).where(SweepLease.name == name, free).with_for_update(skip_locked=True)
    statement = (
        update(SweepLease)
        .where(SweepLease.name.in_(mine))
        .values(owner=owner, expires_at=now() + seconds)
        .returning(SweepLease.name)
    )
    return (await session.execute(statement)).one_or_none() is not None
