"""All queries of models. Every query for a client has the project as a condition."""

from __future__ import annotations

from sqlalchemy import Select, String, cast, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer

from app.core.clock import now
from app.core.usage import finds_users
from app.files.tables import FileRow
from app.models.tables import ModelRow

MAX_CHILDREN = 100


def models(project_id: str) -> Select[ModelRow]:
    """The project's models, unordered, without their reports: these can be long."""
    mine = (ModelRow.project_id == project_id, ModelRow.deleted_at.is_(None))
    return select(ModelRow).where(*mine).options(defer(ModelRow.report, raiseload=True))


async def model(session: AsyncSession, project_id: str, model_id: str, *, lock: bool = False) -> ModelRow | None:
    mine = (ModelRow.id == model_id, ModelRow.project_id == project_id, ModelRow.deleted_at.is_(None))
    statement = select(ModelRow).where(*mine)
    return await session.scalar(statement.with_for_update() if lock else statement)


async def children(session: AsyncSession, project_id: str, model_id: str) -> list[str]:
    """Ids of the newest models distilled from this one."""
    mine = (ModelRow.teacher_id == model_id, ModelRow.project_id == project_id, ModelRow.deleted_at.is_(None))
    statement = select(ModelRow.id).where(*mine).order_by(ModelRow.id.desc()).limit(MAX_CHILDREN)
    return list(await session.scalars(statement))


async def extracted(session: AsyncSession, project_id: str, model_id: str) -> list[ModelRow]:
    """The models that were extracted from this one: children that no job has trained."""
    mine = (ModelRow.teacher_id == model_id, ModelRow.project_id == project_id, ModelRow.deleted_at.is_(None))
    return list(await session.scalars(select(ModelRow).where(*mine, ModelRow.job_id.is_(None))))


@finds_users("file")
async def models_using(session: AsyncSession, project_id: str, file_id: str) -> list[str]:
    """Ids of the models whose files include the object of a file. Keys are random, so no other text contains them."""
    key = select(FileRow.key).where(FileRow.id == file_id, FileRow.project_id == project_id).scalar_subquery()
    mine = (ModelRow.project_id == project_id, ModelRow.deleted_at.is_(None))
    using = (*mine, cast(ModelRow.files, String).contains(key))
    return list(await session.scalars(select(ModelRow.id).where(*using).limit(10)))


async def mark_deleted(session: AsyncSession, model_id: str) -> None:
    await session.execute(update(ModelRow).where(ModelRow.id == model_id).values(deleted_at=now()))
