"""The database: one set of statements for PostgreSQL and for SQLite (WAL), read and write sessions, readiness."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

from sqlalchemy import JSON, MetaData, event, make_url, select
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from app.core import private, sqlite
from app.core.clock import now
from app.core.settings import Settings

CONNECT_SECONDS = 5
KEEPALIVE: dict[str, Any] = {
    "connect_timeout": CONNECT_SECONDS,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""Ends a connection into a partitioned network; libpq's names, seconds and milliseconds."""
DATABASE_LOST = (OperationalError, InterfaceError, InternalError, PoolTimeout)
"""Transient errors: the database can't be reached, is full or busy, or has ended an idle transaction (which the driver
reports as an internal error)."""


LOCK_NOT_AVAILABLE = "55P03"
"""PostgreSQL's code for a lock timeout."""


class Base(DeclarativeBase):
    """Base of all tables; constraints are named so that migrations can name them too."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {dict[str, Any]: JSON, list[dict[str, Any]]: JSON}


@dataclass(frozen=True)
class Limits:
    """Timeouts of a PostgreSQL session, in seconds; what takes longer is ended and can be retried."""

    lock: float = 5.0
    statement: float = 30.0
    idle: float = 10.0
    """Until the next statement of a transaction, which a frozen process would keep open, with its locks, for ever."""

    @property
    def options(self) -> str:
        """As options of a connection."""
        times = {"lock": self.lock, "statement": self.statement, "idle_in_transaction_session": self.idle}
        return " ".join(f"-c {name}_timeout={round(1000 * seconds)}ms" for name, seconds in times.items())


class Database:
    """Opens sessions. A session is one transaction: it commits when its context ends, and rolls back if that raises."""

    def __init__(self, url: str, pool_size: int = 10, limits: Limits = Limits()) -> None:
        self.url, self._limits = make_url(url), limits
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            # One writing connection: writers of this process queue here rather than spin on SQLite's lock.
            self._reader = self._sqlite("BEGIN", pool_size)
            self._writer = self._sqlite("BEGIN IMMEDIATE", 1, async_creator_fn=sqlite.write_connection)
        else:
            self._reader = self._writer = self._postgresql(pool_size)
        self._read_sessions = async_sessionmaker(self._reader, expire_on_commit=False)
        self._write_sessions = async_sessionmaker(self._writer, expire_on_commit=False)
        self._groups = sqlite.GroupCommit(self._writer, limits.statement) if self.is_sqlite else None

    @classmethod
    def from_settings(cls, settings: Settings, pool_size: int | None = None) -> Self:
        """The database of the settings."""
        limits = Limits(
            settings.database_lock_seconds, settings.database_statement_seconds, settings.database_idle_seconds
        )
        return cls(settings.resolved_database_url, pool_size or settings.database_pool_size, limits)

    def _postgresql(self, pool_size: int) -> AsyncEngine:
        return create_async_engine(
            self.url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=CONNECT_SECONDS,
            pool_pre_ping=True,
            connect_args={"options": self._limits.options, **KEEPALIVE},
        )

    def _sqlite(self, begin: str, pool_size: int, **connect: Any) -> AsyncEngine:
        private.make_sqlite_file(self.url.database)
        engine = create_async_engine(
            self.url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=self._limits.statement,
            connect_args=connect,
        )
        event.listen(engine.sync_engine, "connect", sqlite.prepare)
        event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql(begin))
        return engine

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session for reading only."""
        async with self._read_sessions() as session:
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A session for writing; on SQLite it holds the write lock from its first statement."""
        transaction = self._groups.transaction if self._groups else self._write_sessions.begin
        async with transaction() as session:
            yield session

    async def now(self) -> float:
        """The database's clock, in seconds since 1970."""
        async with self.read() as session:
            moment = await session.scalar(select(now()))
        if not isinstance(moment, float):
            raise RuntimeError(f"the database's clock returned {moment!r}, not a number")
        return moment

    async def close(self) -> None:
        if self._groups:
            await self._groups.close()
        await self._reader.dispose()
        await self._writer.dispose()


async def upsert(session: AsyncSession, table: type[Base], rows: list[dict[str, Any]], update: Sequence[str]) -> None:
    """Insert rows; if one with the same primary key exists, set the columns `update` of that one instead.

    Without columns to update, an existing row is unchanged. Several rows must hold plain values: then one compiled
    statement serves batches of every size; compiling costs ten times as much as the driver.
    """
    statement = _upsert(session.get_bind().dialect.name, table, tuple(update))
    if len(rows) > 1:
        await session.execute(statement, rows)
    else:
        await session.execute(statement.values(rows[0]))


@cache
def _upsert(dialect: str, table: type[Base], update: tuple[str, ...]) -> Any:
    insert: Any = insert_postgresql if dialect == "postgresql" else insert_sqlite
    statement = insert(table.__table__)
    key = [column.name for column in table.__table__.primary_key]
    changed = {column: statement.excluded[column] for column in update}
    if changed:
        return statement.on_conflict_do_update(index_elements=key, set_=changed)
    return statement.on_conflict_do_nothing(index_elements=key)


def first_line(error: Exception) -> str:
    """First line of the database's error, for a log; the full text has statements and values, on many lines."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return (str(cause).splitlines() or [type(cause).__name__])[0]


def is_lock_timeout(error: DBAPIError) -> bool:
    """Whether a statement timed out waiting for another transaction's lock."""
    return getattr(error.orig, "sqlstate", None) == LOCK_NOT_AVAILABLE
