"""Databases for the tests of the worker's life with jobs, and settings that all tests of training share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch

from app.core.database import Database
from app.core.settings import Settings
from tests.worker.supervisor.stage import furnish, settings_for
from tests.worker.training.builders import shorten_bundles
from worker.bundle import writer
from worker.bundle.curves import draw_curves
from worker.machine import make_deterministic


@pytest.fixture(autouse=True)
def quiet_machine() -> None:
    """Deterministic kernels on one thread, as in the process that the tests stand for."""
    make_deterministic()
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def short_bundles() -> Iterator[None]:
    """See `shorten_bundles`; `drawn` undoes it."""
    with pytest.MonkeyPatch.context() as patch:
        shorten_bundles(patch)
        yield


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the curves of jobs drawn."""
    monkeypatch.setattr(writer, "draw_curves", draw_curves)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Address of an empty database; empty for SQLite in the settings' folder."""
    if request.param == "sqlite":
        return ""
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
async def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings of a service that has a project and a data file."""
    settings = settings_for(tmp_path, database_url)
    await furnish(settings)
    return settings


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    """A view of the database beside the worker's own."""
    database = Database(settings.resolved_database_url)
    yield database
    await database.close()
