"""What the tests of attempts do with a running one, and what they find of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import select

from app.core.database import Database
from app.core.settings import Settings
from app.jobs.tables import AttemptRow, CheckpointRow
from tests.worker.supervisor.stage import (
    submit,
    until_step,
)
from worker.supervisor.attempt import run_next
from worker.supervisor.context import Context

TRAIN = ("start", "phase=training")


@asynccontextmanager
async def running(context: Context, database: Database, step: int = 1, **fields: object) -> AsyncIterator[str]:
    """A job that has reached a step; waits for the end of its attempt."""
    job_id = await submit(database, **fields)
    async with asyncio.TaskGroup() as group:
        group.create_task(run_next(context))
        await until_step(database, job_id, step)
        yield job_id


async def objects(settings: Settings, prefix: str = "projects") -> list[str]:
    """Keys in the local store."""
    root = settings.data_dir / "store"
    return sorted(str(path.relative_to(root)) for path in (root / prefix).rglob("*") if path.is_file())


async def checkpoints(database: Database, job_id: str) -> list[CheckpointRow]:
    async with database.read() as session:
        alive = (CheckpointRow.job_id == job_id, CheckpointRow.deleted_at.is_(None))
        return list(await session.scalars(select(CheckpointRow).where(*alive).order_by(CheckpointRow.id)))


async def attempts(database: Database, job_id: str) -> list[AttemptRow]:
    async with database.read() as session:
        return list(
            await session.scalars(select(AttemptRow).where(AttemptRow.job_id == job_id).order_by(AttemptRow.number))
        )


def nothing_is_left(context: Context) -> bool:
    """No trainer but the spare, no folder of an attempt."""
    return not [path for path in context.scratch.path.iterdir() if path.is_dir() and path.name != "trainers"]


async def published(database: Database, job_id: str, step: int) -> bool:
    return any(checkpoint.step == step for checkpoint in await checkpoints(database, job_id))


async def say_go(context: Context) -> None:
    """Let a trainer that waits go on."""
    (attempt,) = [path for path in context.scratch.path.glob("job_*/a*")]
    (attempt / "go").touch()
