"""A worker on a stage: real database, real store, a trainer that follows a script."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import app.core.outbox  # noqa: F401  # fills the metadata
from app.core.clock import now
from app.core.database import Base, Database
from app.core.settings import Settings
from app.core.store import Store
from app.files.tables import File
from app.jobs import service
from app.jobs.tables import Job
from app.projects.tables import Project
from app.recipe.job import JobSpec
from tests.app.jobs.builders import load
from worker.context import Context, Patience, open_context

PROJECT = "proj_stage"
DATA = b"pictures"
SCRIPT = Path(__file__).with_name("scripted_trainer.py")
HASTE = Patience(flush=0.05, kill=0.2, hang=20.0, store=20.0, retry=0.02)


def scripted(*acts: str) -> tuple[str, ...]:
    """The command of a trainer that plays `acts`."""
    return (sys.executable, "-S", str(SCRIPT), *acts)


def settings_for(folder: Path, database_url: str = "", **changes: Any) -> Settings:
    """Settings with short times."""
    times = {"lease_seconds": 4.0, "heartbeat_seconds": 0.1, "poll_seconds": 0.05, "retry_backoff_seconds": 0.001}
    values = {"data_dir": folder, "database_url": database_url, "stop_seconds": 20.0, **times, **changes}
    return Settings(_env_file=None, **values)


async def furnish(settings: Settings) -> None:
    """Tables, a project, and a data file whose object lies in the store."""
    database, store = Database(settings.resolved_database_url), Store.from_settings(settings)
    async with database.write() as session:
        await (await session.connection()).run_sync(Base.metadata.create_all)
    path = settings.data_dir / "data.npz"
    path.write_bytes(DATA)
    await store.upload(path, "files/data")
    async with database.write() as session:
        session.add(Project(id=PROJECT, name=PROJECT, created_at=now()))
        await session.flush()
        facts = {"size": len(DATA), "sha256": hashlib.sha256(DATA).hexdigest(), "key": "files/data"}
        arrays = {"x": {"shape": [100, 8, 8], "dtype": "u1"}, "y": {"shape": [100], "dtype": "i8"}}
        file = {"id": "file_data", "project_id": PROJECT, "name": "my data.npz", "format": "npz", **facts}
        session.add(File(**file, summary={"arrays": arrays}, created_at=now(), deleted_at=None))
    await database.close()


async def submit(database: Database, **fields: Any) -> str:
    """A small job; `fields` replace or add top-level ones."""
    document = {
        "data": {"train": "file_data"},
        "student": {"architecture": "mlp"},
        "recipe": {"losses": [{"kind": "cross-entropy"}]},
        **fields,
    }
    return await service.create(database, PROJECT, JobSpec.model_validate(document))


@asynccontextmanager
async def worker(settings: Settings, *acts: str, patience: Patience = HASTE) -> AsyncIterator[Context]:
    """A worker whose trainers play `acts`."""
    async with open_context(settings, ["any", "cpu"], scripted(*acts), patience) as context:
        yield context


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that only shows when one looks."""
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.02)


async def until_step(database: Database, job_id: str, step: int) -> Job:
    """Wait until an attempt has reported a step."""

    async def reached() -> bool:
        return (await load(database, job_id)).step >= step

    await eventually(reached)
    return await load(database, job_id)


def children(pid: int) -> list[int]:
    """Processes that a process has started and that are not dead."""
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [child for text in lists for child in map(int, text.split()) if alive(child)]


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (ProcessLookupError, FileNotFoundError):
        return False
