"""All queries of files and uploads. Every query for a client has the project as a condition."""

from __future__ import annotations

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer

from app.core.clock import now
from app.core.database import upsert
from app.files.tables import FileRow, UploadPart, UploadRow


def files(project_id: str, sha256: str | None = None) -> Select[FileRow]:
    """The project's files, unordered, without their summaries: these can be long."""
    mine = (FileRow.project_id == project_id, FileRow.deleted_at.is_(None))
    statement = select(FileRow).where(*mine).options(defer(FileRow.summary, raiseload=True))
    return statement if sha256 is None else statement.where(FileRow.sha256 == sha256)


async def file(session: AsyncSession, project_id: str, file_id: str, *, lock: bool = False) -> FileRow | None:
    mine = (FileRow.id == file_id, FileRow.project_id == project_id, FileRow.deleted_at.is_(None))
    statement = select(FileRow).where(*mine)
    return await session.scalar(statement.with_for_update() if lock else statement)


async def mark_deleted(session: AsyncSession, file_id: str) -> None:
    await session.execute(update(FileRow).where(FileRow.id == file_id).values(deleted_at=now()))


async def upload(session: AsyncSession, project_id: str, upload_id: str, *, lock: bool = False) -> UploadRow | None:
    statement = select(UploadRow).where(UploadRow.id == upload_id, UploadRow.project_id == project_id)
    return await session.scalar(statement.with_for_update() if lock else statement)


async def is_over(session: AsyncSession, row: UploadRow) -> bool:
    """Whether the upload has expired, by the database's clock."""
    return bool(await session.scalar(select(now() >= row.expires_at)))


async def parts(session: AsyncSession, upload_id: str) -> list[UploadPart]:
    """The parts that arrived, in order."""
    statement = select(UploadPart).where(UploadPart.upload_id == upload_id).order_by(UploadPart.number)
    return list(await session.scalars(statement))


async def part(session: AsyncSession, upload_id: str, number: int) -> UploadPart | None:
    return await session.get(UploadPart, (upload_id, number))


async def other_bytes(session: AsyncSession, upload_id: str, number: int) -> int:
    """Total size of all parts but one."""
    others = (UploadPart.upload_id == upload_id, UploadPart.number != number)
    return int(await session.scalar(select(func.coalesce(func.sum(UploadPart.size), 0)).where(*others)) or 0)


async def keep_part(session: AsyncSession, part: dict[str, object]) -> None:
    """Insert or replace a part."""
    await upsert(session, UploadPart, [part], update=["size", "sha256", "key"])


async def drop_parts(session: AsyncSession, upload_id: str) -> list[str]:
    """Delete all parts; returns their object keys."""
    statement = delete(UploadPart).where(UploadPart.upload_id == upload_id).returning(UploadPart.key)
    return list(await session.scalars(statement))


async def overdue_uploads(session: AsyncSession, limit: int) -> list[UploadRow]:
    """Expired uploads, locked."""
    overdue = (UploadRow.status == "pending", UploadRow.expires_at <= now())
    statement = select(UploadRow).where(*overdue).order_by(UploadRow.id).limit(limit).with_for_update(skip_locked=True)
    return list(await session.scalars(statement))
