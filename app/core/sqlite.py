"""SQLite: connections, and transactions of one process that share a commit.

A commit waits for the disk, and only one transaction at a time may write. `GroupCommit` therefore combines those that
wait at the same moment into one transaction, each in its own savepoint: they share one sync, and run in the order of
their arrival.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiosqlite
from sqlalchemy.exc import TimeoutError as DatabaseTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.pool import ConnectionPoolEntry

Result = TypeVar("Result")
CHUNK_ROWS = 64
MAX_GROUP = 32
"""Transactions after which a group is committed although more wait, so that other processes can write too."""


class WriteConnection(aiosqlite.Connection):
    """A connection that runs statements in the caller's thread, and those that may block in its own.

    Passing a call to the driver's thread costs up to one switch interval of the interpreter (5 ms) while the event
    loop is busy, and a statement takes five calls; the statement of a short transaction itself takes some 20 µs. Only
    one call at a time uses the connection, as its pool lends it to one group at a time.
    """

    async def _execute(self, fn: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        if self._connection is None or self._may_wait(fn, args):
            return await super()._execute(fn, *args, **kwargs)  # type: ignore[no-any-return, no-untyped-call]
        return fn(*args, **kwargs)

    def _may_wait(self, call: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        """Whether a call takes or releases the lock that all processes share, which also syncs the file."""
        if args and isinstance(args[0], str):
            return args[0].startswith(("BEGIN", "PRAGMA"))
        return call in (self._conn.commit, self._conn.close)


def write_connection(database: str, **options: Any) -> WriteConnection:
    """Open a `WriteConnection`, as a creator for SQLAlchemy's dialect."""
    connection = WriteConnection(
        lambda: sqlite3.connect(database, **{**options, "check_same_thread": False}), iter_chunk_size=CHUNK_ROWS
    )
    connection._thread.daemon = True
    return connection


def prepare(connection: Any, _: ConnectionPoolEntry) -> None:
    """Settings of every connection."""
    connection.isolation_level = None  # the driver's own BEGIN would be too late and always deferred
    cursor = connection.cursor()
    # FULL: an accepted job survives a power cut. Grouped transactions share the sync.
    for pragma in ("busy_timeout=10000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


class GroupCommit:
    """Runs the writing transactions of one event loop sequentially, and commits those that wait together."""

    def __init__(self, engine: AsyncEngine, wait_seconds: float) -> None:
        self._engine, self._wait_seconds = engine, wait_seconds
        self._turn = asyncio.Lock()  # given in the order of arrival
        self._group: _Group | None = None
        self._ending: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """A session that is committed, with others, after its context, and rolled back alone if that raises.

        Raises SQLAlchemy's `TimeoutError` if other transactions take too long.
        """
        async with self._my_turn():
            group = self._group or await self._open()
            try:
                async with group.member() as session:
                    yield session
            except BaseException:
                if not await group.is_open():
                    self._end(group)
                raise
            if group.members >= MAX_GROUP:
                self._end(group)
        await asyncio.shield(group.committed)

    @asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._turn.acquire()
        except TimeoutError:
            raise DatabaseTimeout("other transactions took too long") from None
        try:
            yield
        finally:
            self._turn.release()

    async def _open(self) -> _Group:
        connection = await self._engine.connect()
        try:
            await connection.begin()
        except BaseException:
            await connection.close()
            raise
        self._group = group = _Group(connection)
        # It queues after the transactions that wait now: they are the members of the group.
        self._spawn(self._end_in_turn(group))
        return group

    async def _end_in_turn(self, group: _Group) -> None:
        async with self._turn:
            if self._group is group:
                self._end(group)

    def _end(self, group: _Group) -> None:
        """Commit; the next group waits for the connection meanwhile."""
        self._group = None
        self._spawn(group.commit())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Wait until everything is committed."""
        while self._ending:
            await asyncio.gather(*self._ending)


class _Group:
    """One transaction of SQLite, and the outcome that its members wait for."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self.members = 0
        self.committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @asynccontextmanager
    async def member(self) -> AsyncIterator[AsyncSession]:
        session = AsyncSession(self._connection, expire_on_commit=False, join_transaction_mode="create_savepoint")
        async with session, session.begin():
            yield session
        self.members += 1

    async def is_open(self) -> bool:
        """False if SQLite has rolled everything back by itself, as on a full disk; there is then no savepoint."""
        if self._connection.invalidated:
            return False
        raw = await self._connection.get_raw_connection()
        return bool(raw.driver_connection.in_transaction)  # type: ignore[union-attr]  # it is checked out

    async def commit(self) -> None:
        """End the transaction, and pass the outcome to the members."""
        try:
            if not await self.is_open():
                raise DatabaseTimeout("the database rolled the transaction back")
            await self._connection.commit()
            self.committed.set_result(None)
        except Exception as error:
            self.committed.set_exception(error)
            self.committed.exception()  # retrieved: there may be no member left
        finally:
            await self._connection.close()
