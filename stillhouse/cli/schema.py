"""Check of the database schema."""

from __future__ import annotations

from typing import NamedTuple

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.core import migrate


class Schema(NamedTuple):
    """Revisions of the database and of this version."""

    current: str | None
    newest: str | None
    is_old: bool
    """True if migrations are missing. A schema of a newer version is not old: this one runs on it."""


def read(database_url: str) -> Schema:
    """Read the revision of a database. Raises the driver's error if it can't be reached."""
    with migrate.connected(database_url) as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        scripts = ScriptDirectory.from_config(migrate.configuration(connection))
    newest = scripts.get_current_head()
    known = {script.revision for script in scripts.walk_revisions()}
    return Schema(current, newest, current is None or (current in known and current != newest))
