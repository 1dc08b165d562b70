"""Sends the messages of the outbox, at least once: after a crash between sending and deleting, a message is sent again.

A message that can't be sent does not delay others. It is retried after its own pause, which doubles, and is set
aside with an error in the log after `MAX_ATTEMPTS`; one of a kind without a handler is set aside at once. Messages set
aside stay in the table, are counted in `/healthz`, and are for an operator to send again or to delete.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.core.database import Database
from app.core.outbox import OutboxMessage

BATCH = 100
CONCURRENT = 8
"""Messages sent at the same time, so that a slow one delays few."""
SEND_SECONDS = 15.0
"""Longest time that sending one message may take."""
BATCH_SECONDS = 40.0
"""Time after which no further message of a batch is started."""
HOLD_SECONDS = 60.0
"""Time for which a message that is being sent is invisible to other relays: longer than a batch can take."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 300.0
"""Pause after the first failure, and the limit up to which it doubles."""
MAX_ATTEMPTS = 20
"""Failures after which a message is set aside: with the pauses above, somewhat more than an hour."""

log = logging.getLogger("stillhouse.relay")
Send = Callable[[dict[str, Any]], Awaitable[None]]
"""Sends a message, given its payload; raises on failure."""


class UnknownKind(Exception):
    """There is no handler for this kind of message."""


async def relay(database: Database, handlers: Mapping[str, Send]) -> int:
    """Send one batch of due messages by the handlers of their kinds; returns how many were sent."""
    async with database.read() as session:
        if await session.scalar(_due().limit(1)) is None:  # avoids SQLite's write lock if there is nothing to do
            return 0
    async with database.write() as session:
        batch = await _take(session)
    outcomes: dict[int, Exception | None] = {}
    try:
        await _send_all(batch, handlers, outcomes)
    finally:
        async with database.write() as session:
            await _settle(session, batch, outcomes)
    return sum(error is None for error in outcomes.values())


async def set_aside(session: AsyncSession) -> int:
    """The number of messages that were set aside."""
    found = await session.scalar(
        select(func.count()).select_from(OutboxMessage).where(OutboxMessage.set_aside_at.is_not(None))
    )
    return found or 0


def _due() -> Any:
    waiting = (OutboxMessage.set_aside_at.is_(None), OutboxMessage.available_at <= now())
    return select(OutboxMessage).where(*waiting).order_by(OutboxMessage.id)


async def _take(session: AsyncSession) -> list[OutboxMessage]:
    """Claim due messages. A try is counted before sending, so that a message that kills its relay is set aside too."""
    batch = list(await session.scalars(_due().limit(BATCH).with_for_update(skip_locked=True)))
    held = {"available_at": now() + HOLD_SECONDS, "attempts": OutboxMessage.attempts + 1}
    taken = OutboxMessage.id.in_([message.id for message in batch])
    await session.execute(
        update(OutboxMessage).where(taken).values(**held).execution_options(synchronize_session=False)
    )
    return batch


async def _send_all(
    batch: list[OutboxMessage], handlers: Mapping[str, Send], outcomes: dict[int, Exception | None]
) -> None:
    gate, until = asyncio.Semaphore(CONCURRENT), asyncio.get_running_loop().time() + BATCH_SECONDS

    async def send(message: OutboxMessage) -> None:
        async with gate:
            if asyncio.get_running_loop().time() < until:
                outcomes[message.id] = await _outcome(message, handlers)

    await asyncio.gather(*map(send, batch))


async def _outcome(message: OutboxMessage, handlers: Mapping[str, Send]) -> Exception | None:
    """Send a message; returns the error if sending failed."""
    if (handler := handlers.get(message.kind)) is None:
        return UnknownKind(f"there is no handler for messages of the kind {message.kind!r}")
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await handler(message.payload)
    except Exception as error:
        return error
    return None


async def _settle(session: AsyncSession, batch: list[OutboxMessage], outcomes: dict[int, Exception | None]) -> None:
    """Delete sent messages; delay or set aside failed ones; make those that were not tried due again at once."""
    sent = [id for id, error in outcomes.items() if error is None]
    if sent:
        await session.execute(delete(OutboxMessage).where(OutboxMessage.id.in_(sent)))
    for message in batch:
        if (error := outcomes.get(message.id)) is not None:
            await _change(session, message, _after(message, error))
        elif message.id not in outcomes:
            await _change(session, message, {"available_at": now(), "attempts": message.attempts})


def _after(message: OutboxMessage, error: Exception) -> dict[str, Any]:
    """Columns of a message after a failure; `message` is the row as it was before it was taken."""
    attempts, reason = message.attempts + 1, f"{type(error).__name__}: {error}"[:1024]
    if isinstance(error, UnknownKind) or attempts >= MAX_ATTEMPTS:
        log.error("message %d (%s) was set aside after %d tries: %s", message.id, message.kind, attempts, reason)
        return {"last_error": reason, "set_aside_at": now()}
    pause = min(FIRST_PAUSE_SECONDS * 2 ** (attempts - 1), LONGEST_PAUSE_SECONDS)
    log.warning("message %d (%s) could not be sent, next try in %g s: %s", message.id, message.kind, pause, reason)
    return {"last_error": reason, "available_at": now() + pause}


async def _change(session: AsyncSession, message: OutboxMessage, values: dict[str, Any]) -> None:
    mine = update(OutboxMessage).where(OutboxMessage.id == message.id).values(**values)
    await session.execute(mine.execution_options(synchronize_session=False))
