"""A worker is known for as long as it looks for jobs."""

from __future__ import annotations

import asyncio
from pathlib import Path

from app.core import migrate
from app.core.database import Database
from app.core.settings import Settings
from app.jobs import workers
from app.jobs.workers import Capability
from worker.supervisor.presence import Presence

HERE = Capability(frozenset({"any", "cpu"}), gpus=1, nodes=1)


async def until(database: Database, there: frozenset[Capability]) -> None:
    """Wait for these workers to be the ones that are known."""
    while True:
        async with database.read() as session:
            if await workers.present(session) == there:
                return
        await asyncio.sleep(0.02)


async def test_a_worker_comes_and_goes(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    await asyncio.to_thread(migrate.upgrade, settings.resolved_database_url)
    database = Database(settings.resolved_database_url)
    try:
        async with Presence(settings, "machine:1:a", ["any", "cpu"]):
            await until(database, frozenset({HERE}))
        await until(database, frozenset())
    finally:
        await database.close()


async def test_a_worker_without_a_database_goes_on(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url=f"sqlite+aiosqlite:///{tmp_path / 'empty.db'}")
    async with Presence(settings, "machine:1:a", ["any"]):
        pass
