"""Short ways to make jobs and to move time on."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.core.database import Database, Limits
from app.files.tables import FileRow
from app.jobs import leases, service
from app.jobs.leases import Lease
from app.jobs.tables import EventRow, JobRow
from app.models.tables import ModelRow
from app.projects.tables import Project
from app.recipe.job import JobSpec
from app.recipe.students.model import ModelConfig

PATIENT = Limits(lock=60.0, statement=300.0, idle=300.0)
"""Limits of a session on a machine with other work."""
PROJECT = "proj_test"
CONFIG = ModelConfig.model_validate(
    {
        "architecture": {"architecture": "mlp"},
        "input": {"channels": 1, "height": 8, "width": 8},
        "preprocessing": {"mean": [0.5], "std": [0.25]},
        "classes": 10,
    }
)


async def add_inputs(session: AsyncSession, project: str) -> None:
    """A project with the data file `file_{project}` and the teacher `model_{project}`."""
    session.add(Project(id=project, name=project, created_at=now()))
    await session.flush()
    arrays = {"x": {"shape": [100, 8, 8], "dtype": "u1"}, "y": {"shape": [100], "dtype": "i8"}}
    file = {"name": "digits.npz", "format": "npz", "size": 10, "sha256": "0" * 64, "key": f"files/{project}"}
    times = {"created_at": now(), "deleted_at": None}
    session.add(FileRow(id=f"file_{project}", project_id=project, summary={"arrays": arrays}, **file, **times))
    bundle = [{"name": "config.json", "key": "bundle/config.json", "size": 3, "sha256": "1" * 64}]
    model = {"config": CONFIG.model_dump(mode="json"), "parameters": 650, "files": bundle, **times}
    session.add(ModelRow(id=f"model_{project}", project_id=project, **model))


def job_spec(project: str = PROJECT, **fields: Any) -> JobSpec:
    """A small supervised job; `fields` replace or add top-level ones."""
    document = {
        "data": {"train": f"file_{project}"},
        "student": {"architecture": "mlp"},
        "recipe": {"losses": [{"kind": "cross-entropy"}]},
    }
    return JobSpec.model_validate({**document, **fields})


async def submit(database: Database, **fields: Any) -> str:
    return (await service.create(database, PROJECT, job_spec(**fields))).id


async def claim(database: Database, owner: str = "worker-1", job_id: str | None = None) -> Lease | None:
    async with database.write() as session:
        return await leases.claim(session, owner=owner, queues=["any", "cpu"], lease_seconds=60.0, job_id=job_id)


async def must_claim(database: Database, owner: str = "worker-1") -> Lease:
    lease = await claim(database, owner)
    assert lease is not None
    return lease


async def running(database: Database, **fields: Any) -> Lease:
    """A job that a worker has started."""
    await submit(database, **fields)
    lease = await must_claim(database)
    async with database.write() as session:
        await leases.start(session, lease)
    return lease


async def load(database: Database, job_id: str) -> JobRow:
    async with database.read() as session:
        return (await session.scalars(select(JobRow).where(JobRow.id == job_id))).one()


async def events(database: Database, job_id: str) -> list[EventRow]:
    async with database.read() as session:
        return list(await session.scalars(select(EventRow).where(EventRow.job_id == job_id).order_by(EventRow.seq)))


async def let_lease_run_out(database: Database, job_id: str) -> None:
    """As if the worker had not beaten for a lease's length."""
    async with database.write() as session:
        held = (JobRow.id == job_id, JobRow.lease_expires_at.is_not(None))
        await session.execute(update(JobRow).where(*held).values(lease_expires_at=now() - 1.0))


async def let_deadline_pass(database: Database, job_id: str) -> None:
    """As if the job had been in its state for longer than allowed."""
    async with database.write() as session:
        waits = (JobRow.id == job_id, JobRow.deadline_at.is_not(None))
        await session.execute(update(JobRow).where(*waits).values(deadline_at=now() - 3600.0))


async def let_backoff_pass(database: Database, job_id: str) -> None:
    async with database.write() as session:
        await session.execute(update(JobRow).where(JobRow.id == job_id).values(next_run_at=now() - 1.0))
