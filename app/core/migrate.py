"""Migrates a database to the schema of this version of the service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine, event, make_url
from sqlalchemy.pool import NullPool

from app.core import private


def upgrade(database_url: str, revision: str = "head") -> None:
    """Apply the missing migrations in one transaction. Blocks; an up-to-date database is unchanged."""
    with connected(database_url) as connection:
        command.upgrade(configuration(connection), revision)


def downgrade(database_url: str, revision: str) -> None:
    """Revert the migrations after `revision`; `base` empties the database."""
    with connected(database_url) as connection:
        command.downgrade(configuration(connection), revision)


def configuration(connection: Connection) -> Config:
    """Alembic's configuration: the installed migrations, run on this connection."""
    package = find_spec("migrations")
    if package is None or package.origin is None:
        raise RuntimeError("the migrations are not installed")
    config = Config()
    config.set_main_option("script_location", str(Path(package.origin).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@contextmanager
def connected(database_url: str) -> Iterator[Connection]:
    """A connection by the synchronous form of the database's driver."""
    url = make_url(database_url)
    is_sqlite = url.get_backend_name() == "sqlite"
    engine = create_engine(url.set(drivername="sqlite") if is_sqlite else url, poolclass=NullPool)
    if is_sqlite:
        private.make_sqlite_file(url.database)
        event.listen(engine, "connect", _disable_driver_transactions)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    with engine.connect() as connection:
        yield connection


def _disable_driver_transactions(connection: Any, _: object) -> None:
    """Disable the driver's own BEGIN, which would leave schema changes outside the transaction."""
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout=60000")
