"""A database with a project and inputs in it, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from app.core.database import Database
from tests.app.jobs.builders import PATIENT, PROJECT, add_inputs


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """All tables, the project `PROJECT`, and inputs that jobs may name."""
    database = Database(database_url, limits=PATIENT)
    async with database.write() as session:
        await add_inputs(session, PROJECT)
    yield database
    await database.close()
