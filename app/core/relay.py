"""Sends what lies in the outbox. At least once: a crash between sending and deleting sends again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.core.database import Database
from app.core.outbox import OutboxMessage

BATCH = 100
HOLD_SECONDS = 30.0
"""For so long a message that is being sent is invisible to other relays; a failed one is tried again after that."""

Send = Callable[[str, dict[str, Any]], Awaitable[None]]
"""Sends a message, given its kind and payload; raises if it could not."""


async def relay(database: Database, send: Send) -> int:
    """Send one batch of due messages; returns how many were sent."""
    async with database.read() as session:
        if await session.scalar(_due().limit(1)) is None:  # spares SQLite's write lock when there is nothing to do
            return 0
    async with database.write() as session:
        batch = await _take(session)
    sent = []
    try:
        for message in batch:
            await send(message.kind, message.payload)
            sent.append(message.id)
    finally:
        if sent:
            async with database.write() as session:
                await session.execute(delete(OutboxMessage).where(OutboxMessage.id.in_(sent)))
    return len(sent)


def _due() -> Any:
    return select(OutboxMessage).where(OutboxMessage.available_at <= now()).order_by(OutboxMessage.id)


async def _take(session: AsyncSession) -> list[OutboxMessage]:
    batch = list(await session.scalars(_due().limit(BATCH).with_for_update(skip_locked=True)))
    held = {"available_at": now() + HOLD_SECONDS, "attempts": OutboxMessage.attempts + 1}
    taken = OutboxMessage.id.in_([message.id for message in batch])
    await session.execute(
        update(OutboxMessage).where(taken).values(**held).execution_options(synchronize_session=False)
    )
    return batch
