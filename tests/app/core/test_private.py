"""What the service keeps, other users of the machine can't read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from app.core import migrate
from app.core.database import Database
from app.core.settings import Settings
from app.projects.service import ensure_first_key
from stillhouse import connection
from stillhouse.connection import Connection


@pytest.fixture(autouse=True)
def generous() -> Iterator[None]:
    """A user who lets everyone read what he makes."""
    before = os.umask(0o000)
    yield
    os.umask(before)


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_folder_database_key_and_secret_are_their_owners_alone(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    migrate.upgrade(settings.resolved_database_url)
    assert rights(settings.data_dir / "stillhouse.db") == 0o600
    database = Database(settings.resolved_database_url)
    async with database.write() as session:
        await session.execute(text("CREATE TABLE extra (a INTEGER)"))
    assert {rights(path) for path in settings.data_dir.glob("stillhouse.db*")} == {0o600}
    await database.close()
    connection.write(settings.data_dir, Connection(url="http://x", key="y"))
    assert settings.secret_bytes
    assert rights(settings.data_dir) == 0o700
    assert rights(settings.data_dir / "client.json") == rights(settings.data_dir / "secret") == 0o600


async def test_the_first_key_is_its_owners_alone(sqlite_url: str, tmp_path: Path) -> None:
    database, settings = Database(sqlite_url), Settings(data_dir=tmp_path / "data")
    assert await ensure_first_key(database, settings) is not None
    await database.close()
    assert rights(settings.data_dir / "key") == 0o600


async def test_a_database_that_everyone_could_read_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    path.touch(0o644)
    beside = tmp_path / "old.db-wal"
    beside.touch(0o644)
    database = Database(f"sqlite+aiosqlite:///{path}")
    assert rights(path) == rights(beside) == 0o600
    await database.close()
