"""Turns for background work that only one of several processes does at a time."""

from __future__ import annotations

from sqlalchemy import or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.core.database import upsert
from app.jobs.tables import SweepLease


async def take_turn(session: AsyncSession, name: str, owner: str, seconds: float) -> bool:
    """Take or keep the turn for the work `name`, for `seconds`; false while another process has it."""
    fresh = {"name": name, "owner": owner, "expires_at": 0.0}
    await upsert(session, SweepLease, [fresh], update=[])
    free = or_(SweepLease.owner == owner, SweepLease.expires_at <= now())
    # Skipped while another process has locked the row: a frozen one must not block the others.
    mine = select(SweepLease.name).where(SweepLease.name == name, free).with_for_update(skip_locked=True)
    statement = (
        update(SweepLease)
        .where(SweepLease.name.in_(mine))
        .values(owner=owner, expires_at=now() + seconds)
        .returning(SweepLease.name)
    )
    return (await session.execute(statement)).one_or_none() is not None
