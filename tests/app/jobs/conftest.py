"""A database with a project and a data file in it, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import app.core.outbox
import app.projects.tables  # noqa: F401  # fills the metadata
from app.core.database import Base, Database
from tests.app.jobs.builders import PROJECT, add_inputs


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of an empty database."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'test.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """All tables, the project `PROJECT`, and inputs that jobs may name."""
    database = Database(database_url)
    async with database.write() as session:
        await (await session.connection()).run_sync(Base.metadata.create_all)
    async with database.write() as session:
        await add_inputs(session, PROJECT)
    yield database
    await database.close()
