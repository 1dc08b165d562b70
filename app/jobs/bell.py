"""Rings when jobs may have new events, so that one reader for all streams need not ask the database again and again.

A ring is a hint. It may come for nothing, and one that is lost (a connection that broke, a pooler that passes no
notifications on) only delays: the reader also looks by itself from time to time.
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
"""Channel on which PostgreSQL's trigger names the job of every new event."""
CHANGES_SECONDS = 0.25
"""Time between two looks at SQLite's counter of changes."""
RETRY_SECONDS = 2.0
log = logging.getLogger(__name__)

Ring = Callable[[str | None], None]
"""Takes the id of a job with news; none: any job may have some."""


async def run_bell(database: Database, ring: Ring, needed: asyncio.Event) -> NoReturn:
    """Ring for as long as the task lasts; while `needed` is not set, a database without notifications is left alone."""
    while True:
        await needed.wait()
        try:
            if database.is_sqlite:
                await _watch_counter(database, ring, needed)
            else:
                await _listen(database.url, ring)
        except (SQLAlchemyError, psycopg.Error) as error:
            log.warning("no news of events from the database: %s; trying again", first_line(error))
        await asyncio.sleep(RETRY_SECONDS)


async def _listen(url: URL, ring: Ring) -> None:
    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    async with await psycopg.AsyncConnection.connect(address, autocommit=True, **KEEPALIVE) as connection:
        await connection.execute(f"LISTEN {CHANNEL}")
        ring(None)  # for what happened before
        async for notification in connection.notifies():
            ring(notification.payload)


async def _watch_counter(database: Database, ring: Ring, needed: asyncio.Event) -> None:
    """The counter changes when another connection has committed; `database` keeps one connection, and only reads."""
    seen = None
    while needed.is_set():
        async with database.read() as session:
            counter = await session.scalar(text("PRAGMA data_version"))
        if counter != seen:
            seen = counter
            ring(None)
        await asyncio.sleep(CHANGES_SECONDS)
