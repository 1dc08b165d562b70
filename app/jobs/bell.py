"""Notifies the reader of all event streams of new events, so that it need not poll the database.

A notification is a hint. It may be spurious, and a lost one (a broken connection, a pooler that does not forward
notifications) only causes a delay: the reader also polls at intervals.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NoReturn

import psycopg
from sqlalchemy import URL, text
from sqlalchemy.exc import SQLAlchemyError

from app.core.database import KEEPALIVE, Database, first_line

CHANNEL = "stillhouse_events"
"""Channel on which PostgreSQL's trigger sends the job id of every new event."""
CHANGES_SECONDS = 0.25
"""Interval at which SQLite's change counter is read."""
RETRY_SECONDS = 2.0
log = logging.getLogger(__name__)

Ring = Callable[[str | None], None]
"""Takes the id of a job with new events; none: any job may have some."""


async def run_bell(database: Database, ring: Ring, needed: asyncio.Event) -> NoReturn:
    """Ring while the task runs; a database without notifications is not read unless `needed` is set."""
    while True:
        await needed.wait()
        try:
            if database.is_sqlite:
                await _watch_counter(database, ring, needed)
            else:
                await _listen(database.url, ring)
        except (SQLAlchemyError, psycopg.Error) as error:
            log.warning("event notifications from the database failed: %s; retrying", first_line(error))
        await asyncio.sleep(RETRY_SECONDS)


async def _listen(url: URL, ring: Ring) -> None:
    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    async with await psycopg.AsyncConnection.connect(address, autocommit=True, **KEEPALIVE) as connection:
        await connection.execute(f"LISTEN {CHANNEL}")
        ring(None)  # for earlier events
        async for notification in connection.notifies():
            ring(notification.payload)


async def _watch_counter(database: Database, ring: Ring, needed: asyncio.Event) -> None:
    """Ring when the counter changes, after a commit by another connection. `database` has one connection and only
    reads."""
    seen = None
    while needed.is_set():
        async with database.read() as session:
            counter = await session.scalar(text("PRAGMA data_version"))
        if counter != seen:
            seen = counter
            ring(None)
        await asyncio.sleep(CHANGES_SECONDS)
