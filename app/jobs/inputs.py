"""Files and models that the spec of a leased job refers to."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.files.tables import FileRow
from app.jobs.leases import Lease, StoredFile
from app.models.tables import ModelRow


async def input_files(session: AsyncSession, lease: Lease) -> dict[str, list[StoredFile]]:
    """The files behind every reference of the spec: one for a data file, the bundle for a model."""
    staged: dict[str, list[StoredFile]] = {}
    for reference in set(lease.spec.files.values()):
        file = await session.scalar(
            select(FileRow).where(FileRow.id == reference, FileRow.project_id == lease.project_id)
        )
        if file is not None:
            staged[file.id] = [StoredFile(file.name, file.key, file.size, file.sha256)]
    for origin in lease.spec.origins.values():
        wanted = (ModelRow.id == origin.model, ModelRow.project_id == lease.project_id)
        model = await session.scalar(select(ModelRow).where(*wanted))
        if model is not None:
            staged[model.id] = [StoredFile(**file) for file in model.files]
    return staged


async def model_names(session: AsyncSession, lease: Lease) -> dict[str, str]:
    """Names of the service's models that the spec refers to, by id; unnamed ones are omitted."""
    wanted = {origin.model for origin in lease.spec.origins.values()} - {None}
    rows = await session.execute(
        select(ModelRow.id, ModelRow.name).where(ModelRow.id.in_(wanted), ModelRow.project_id == lease.project_id)
    )
    return {model_id: name for model_id, name in rows.all() if name is not None}
