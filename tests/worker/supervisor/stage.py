"""A worker on a stage: real database, real store, a trainer that follows a script."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import app.core.outbox  # noqa: F401  # fills the metadata
from app.core.clock import now
from app.core.database import Base, Database
from app.core.settings import Settings
from app.core.store import Store
from app.files.tables import FileRow
from app.jobs import service
from app.jobs.tables import JobRow
from app.projects.tables import Project
from app.recipe.job import JobSpec
from tests.app.jobs.builders import load
from worker.supervisor.context import Context, Timeouts, open_context

PROJECT = "proj_stage"
DATA = b"pictures"
ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("scripted_trainer.py")
HASTE = Timeouts(flush=0.05, kill=0.2, hang=20.0, store=20.0, retry=0.02)


def scripted(*acts: str) -> tuple[str, ...]:
    """The command of a trainer that plays `acts`."""
    return (sys.executable, "-S", str(SCRIPT), *acts)


def settings_for(folder: Path, database_url: str = "", **changes: Any) -> Settings:
    """Settings with short times."""
    times = {"lease_seconds": 600.0, "heartbeat_seconds": 0.1, "poll_seconds": 0.05, "retry_backoff_seconds": 0.001}
    values = {"data_dir": folder, "database_url": database_url, "stop_seconds": 20.0, **times, **changes}
    return Settings(_env_file=None, **values)


async def furnish(settings: Settings, data: bytes = DATA) -> None:
    """Tables, a project, and a data file whose object lies in the store."""
    database, store = Database(settings.resolved_database_url), Store.from_settings(settings)
    async with database.write() as session:
        await (await session.connection()).run_sync(Base.metadata.create_all)
    path = settings.data_dir / "data.npz"
    path.write_bytes(data)
    await store.upload(path, "files/data")
    async with database.write() as session:
        session.add(Project(id=PROJECT, name=PROJECT, created_at=now()))
        await session.flush()
        facts = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "key": "files/data"}
        arrays = {"x": {"shape": [100, 8, 8], "dtype": "u1"}, "y": {"shape": [100], "dtype": "i8"}}
        file = {"id": "file_data", "project_id": PROJECT, "name": "my data.npz", "format": "npz", **facts}
        session.add(FileRow(**file, summary={"arrays": arrays}, created_at=now(), deleted_at=None))
    await database.close()


async def submit(database: Database, **fields: Any) -> str:
    """A small job; `fields` replace or add top-level ones."""
    document = {
        "data": {"train": "file_data"},
        "student": {"architecture": "mlp"},
        "recipe": {"losses": [{"kind": "cross-entropy"}]},
        **fields,
    }
    return (await service.create(database, PROJECT, JobSpec.model_validate(document))).id


async def ask(database: Database, verb: Callable[..., Awaitable[JobRow]], job_id: str, *arguments: Any) -> None:
    """Make a user's request, such as `service.cancel`."""
    async with database.write() as session:
        await verb(session, PROJECT, job_id, *arguments)


@asynccontextmanager
async def worker(settings: Settings, *acts: str, timeouts: Timeouts = HASTE) -> AsyncIterator[Context]:
    """A worker whose trainers play `acts`."""
    async with open_context(settings, ["any", "cpu"], scripted(*acts), timeouts) as context:
        yield context


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that only shows when one looks."""
    async with asyncio.timeout(600):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def until_status(database: Database, job_id: str, status: str) -> JobRow:
    """Wait until a job has a status."""

    async def reached() -> bool:
        return (await load(database, job_id)).status == status

    await eventually(reached)
    return await load(database, job_id)


async def until_dead(*pids: int) -> None:
    """Wait until none of the processes lives."""

    async def dead() -> bool:
        return not any(map(alive, pids))

    await eventually(dead)


def process_environment(settings: Settings, *acts: str, **more: str) -> dict[str, str]:
    """Environment of a worker's process with these settings, whose trainers play `acts`."""
    names = ("data_dir", "database_url", "lease_seconds", "heartbeat_seconds", "poll_seconds", "stop_seconds")
    given = {f"STILLHOUSE_{name.upper()}": str(getattr(settings, name)) for name in names}
    return {**os.environ, **given, "STAGE_ACTS": "\n".join(acts), "PYTHONPATH": str(ROOT), **more}


async def until_step(database: Database, job_id: str, step: int) -> JobRow:
    """Wait until an attempt has reported a step."""

    async def reached() -> bool:
        return (await load(database, job_id)).step >= step

    await eventually(reached)
    return await load(database, job_id)


def children(pid: int) -> list[int]:
    """Processes that a process has started and that are not dead."""
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [child for text in lists for child in map(int, text.split()) if alive(child)]


def processes_in(folder: Path) -> list[int]:
    """Children of this process that work below a folder."""
    found = []
    for pid in children(os.getpid()):
        with suppress(FileNotFoundError):  # it has just died
            if os.readlink(f"/proc/{pid}/cwd").startswith(str(folder.resolve())):
                found.append(pid)
    return found


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (ProcessLookupError, FileNotFoundError):
        return False


async def has_torch(pid: int) -> bool:
    """Whether a process has loaded torch."""
    return await asyncio.to_thread(lambda: "libtorch" in Path(f"/proc/{pid}/maps").read_text())
