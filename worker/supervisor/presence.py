"""Announces this worker in the database, so that users are informed of a queue without workers."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from app.core.database import Database
from app.core.settings import Settings
from app.jobs import workers

LEAVE_SECONDS = 5.0
"""Longest wait for signing off; otherwise the row of the worker soon counts as absent."""

logger = logging.getLogger(__name__)


class Presence:
    """Announces a worker from a separate thread: the event loop of a pool process is suspended between tasks."""

    def __init__(self, settings: Settings, owner: str, queues: Sequence[str]) -> None:
        self._settings, self._owner, self._queues = settings, owner, queues
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._announce()), name="presence", daemon=True)

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._leaving.set()
        await asyncio.to_thread(self._thread.join, LEAVE_SECONDS)

    async def _announce(self) -> None:
        database = Database.from_settings(self._settings, 1)
        try:
            while not self._leaving.is_set():
                await self._write(database, leaving=False)
                await asyncio.to_thread(self._leaving.wait, workers.ANNOUNCE_SECONDS)
            await self._write(database, leaving=True)
        finally:
            await database.close()

    async def _write(self, database: Database, *, leaving: bool) -> None:
        gpus, nodes = self._settings.worker_gpus, self._settings.worker_nodes
        try:
            async with database.write() as session:
                if leaving:
                    await workers.leave(session, self._owner)
                else:
                    await workers.announce(session, self._owner, self._queues, gpus, nodes)
        except SQLAlchemyError:
            logger.warning("this worker can't be announced in the database", exc_info=True)
