"""Access of one attempt to the database and the store, with retries."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import DATABASE_LOST, Database
from app.core.errors import Unavailable
from app.core.store import Store
from app.jobs.leases import Lease
from worker.supervisor.context import Context, Timeouts
from worker.supervisor.race import unbroken

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Access:
    """The database and the store, under one lease."""

    def __init__(self, lease: Lease, context: Context) -> None:
        self.lease = lease
        self.store: Store = context.store
        self._database: Database = context.database
        self._timeouts: Timeouts = context.timeouts

    async def once(self, operation: Callable[[AsyncSession, Lease], Awaitable[T]]) -> T:
        """Run one transaction. Raises one of `DATABASE_LOST`.

        A cancellation waits for its end: an interrupted one could leave a connection that holds the database's lock.
        """
        return await unbroken(self._transaction(operation))

    async def write(self, operation: Callable[[AsyncSession, Lease], Awaitable[T]]) -> T:
        """Run one transaction, repeated while the database can't be reached; the guard of the lease ends the retries.

        A commit whose response was lost is made twice: operations must tolerate this, or raise `LeaseLost`.
        """
        while True:
            try:
                return await self.once(operation)
            except DATABASE_LOST:
                logger.warning("%s: the database can't be reached", self.lease.job_id, exc_info=True)
                await asyncio.sleep(self._timeouts.retry)

    async def patiently(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Access the store, repeated at doubling intervals while it can't be reached; finally raises `Unavailable`."""
        pause, until = self._timeouts.retry, time.monotonic() + self._timeouts.store
        while True:
            try:
                return await operation()
            except Unavailable:
                if time.monotonic() + pause > until:
                    raise
                logger.warning("%s: the store can't be reached", self.lease.job_id, exc_info=True)
            await asyncio.sleep(pause)
            pause *= 2

    async def _transaction(self, operation: Callable[[AsyncSession, Lease], Awaitable[T]]) -> T:
        async with self._database.write() as session:
            return await operation(session, self.lease)
