"""Publication by an attempt: checkpoints, and at its end the artifacts and the model. The rows count, not the objects.

Every function works in the caller's transaction and raises `LeaseLost` if the lease is no longer the current one.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.core.ids import new_id
from app.jobs import lifecycle
from app.jobs.leases import Lease, StoredFile, emit, fenced
from app.jobs.tables import ArtifactRow, CheckpointRow
from app.models.tables import ModelRow
from app.recipe.report import summary
from app.recipe.students.model import ModelConfig

KEPT_CHECKPOINTS = 2


async def publish_checkpoint(session: AsyncSession, lease: Lease, step: int, files: list[StoredFile]) -> list[str]:
    """Register an uploaded checkpoint; returns the object keys of the superseded ones, to be deleted.

    A repeated call, because the response to the first commit was lost, does nothing.
    """
    same = (CheckpointRow.job_id == lease.job_id, CheckpointRow.attempt == lease.attempt, CheckpointRow.step == step)
    if await session.scalar(select(CheckpointRow.id).where(*same)) is not None:
        return []
    checkpoint_id = new_id("ckpt")
    await emit(
        session, lease, "checkpoint", f"checkpoint at step {step}", data={"step": step}, checkpoint_id=checkpoint_id
    )
    session.add(
        CheckpointRow(
            id=checkpoint_id,
            job_id=lease.job_id,
            attempt=lease.attempt,
            token=lease.token,
            step=step,
            files=[asdict(file) for file in files],
            created_at=now(),
        )
    )
    await session.flush()
    alive = select(CheckpointRow).where(CheckpointRow.job_id == lease.job_id, CheckpointRow.deleted_at.is_(None))
    old = (await session.scalars(alive.order_by(CheckpointRow.id.desc()).offset(KEPT_CHECKPOINTS))).all()
    for row in old:
        row.deleted_at = now()
    return [file["key"] for row in old for file in row.files]


async def give_up_checkpoint(session: AsyncSession, lease: Lease) -> None:
    """Discard the checkpoint that the attempt should resume from, since it can't be used; the next attempt uses the
    one before it."""
    if lease.checkpoint is None:
        return
    await session.execute(update(CheckpointRow).where(CheckpointRow.id == lease.checkpoint.id).values(deleted_at=now()))
    alive = select(CheckpointRow.id).where(CheckpointRow.job_id == lease.job_id, CheckpointRow.deleted_at.is_(None))
    before = await session.scalar(alive.order_by(CheckpointRow.id.desc()).limit(1))
    message = f"the checkpoint at step {lease.checkpoint.step} can't be used"
    await emit(session, lease, "log", message, "warning", checkpoint_id=before)


async def succeed(
    session: AsyncSession,
    lease: Lease,
    artifacts: list[StoredFile],
    config: ModelConfig | None,
    parameters: int,
    report: dict[str, Any],
) -> str | None:
    """Publish the artifacts and the model that `config` describes, and end the job; returns the model's id. None: the
    job trained none."""
    model_id = new_id("model") if config is not None else None
    job = await fenced(session, lease, lifecycle.SUCCEED, "succeeded", model_id=model_id, result=summary(report))
    for artifact in artifacts:
        row = {"id": new_id("art"), "job_id": job.id, "attempt": lease.attempt, "token": lease.token}
        session.add(ArtifactRow(**row, **asdict(artifact), created_at=now()))
    if config is not None:
        session.add(
            ModelRow(
                id=model_id,
                project_id=job.project_id,
                name=job.name,
                job_id=job.id,
                teacher_id=lease.spec.all_teachers[0].model if lease.spec.all_teachers else None,
                config=config.model_dump(mode="json"),
                parameters=parameters,
                report=report,
                files=[asdict(artifact) for artifact in artifacts],
                created_at=now(),
            )
        )
    return model_id
