"""How Alembic runs here: all in one transaction, one process at a time, giving up rather than blocking the service."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, text

import app.core.outbox
import app.files.tables
import app.jobs.tables
import app.models.tables
import app.projects.tables  # noqa: F401  # importing the tables puts them into the metadata
from app.core.database import Base
from app.core.migrate import connected
from app.core.settings import Settings

LOCK_TIMEOUT = "5s"
"""Longest wait for a table's lock: behind a migration that waits, every other query would queue up too."""
STATEMENT_TIMEOUT = "300s"
TURN_TIMEOUT = "60s"
"""Longest wait for another process that migrates."""
ADVISORY_LOCK = 0x5711


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        render_as_batch=True,  # SQLite changes a table by copying it
        transactional_ddl=True,
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            take_turn(connection)
        context.run_migrations()


def take_turn(connection: Connection) -> None:
    """One process migrates; SQLite sees to that with its write lock."""
    connection.execute(text(f"SET LOCAL lock_timeout = '{TURN_TIMEOUT}'"))
    connection.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))
    connection.execute(
        text(f"SET LOCAL lock_timeout = '{context.config.attributes.get('lock_timeout', LOCK_TIMEOUT)}'")
    )
    connection.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'"))


if context.is_offline_mode():
    raise SystemExit("migrations run against a database, not into a script")
given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    with connected(Settings().resolved_database_url) as own:
        migrate(own)
