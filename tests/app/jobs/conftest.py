"""A database with a project and inputs in it, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from app.core.database import Database
from tests.app.conftest import Api
from tests.app.jobs.builders import PATIENT, PROJECT, add_inputs
from tests.app.jobs.submitted import archive


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """All tables, the project `PROJECT`, and inputs that jobs may name."""
    database = Database(database_url, limits=PATIENT)
    async with database.write() as session:
        await add_inputs(session, PROJECT)
    yield database
    await database.close()


@pytest.fixture
async def data(api: Api) -> str:
    """Id of an uploaded data file."""
    answer = await api.client.post("/v1/files", params={"name": "digits.npz"}, content=archive())
    assert answer.status_code == 201, answer.text
    file_id: str = answer.json()["id"]
    return file_id
