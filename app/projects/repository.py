"""All queries of projects and their keys."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Row, Select, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.projects.tables import ApiKey, Project

_VALID = (ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now()))


def keys_of(project_id: str) -> Select[ApiKey]:
    """The project's keys, revoked ones included, unordered."""
    return select(ApiKey).where(ApiKey.project_id == project_id)


async def key(session: AsyncSession, project_id: str, key_id: str) -> ApiKey | None:
    return await session.scalar(keys_of(project_id).where(ApiKey.id == key_id))


async def valid_key(session: AsyncSession, digest: str) -> Row[str, str, list[str], bool] | None:
    """Id, project, scopes of the key that is neither revoked nor expired, and whether its use should be recorded."""
    stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < now() - 60.0)
    statement = select(ApiKey.id, ApiKey.project_id, ApiKey.scopes, stale).where(ApiKey.digest == digest, *_VALID)
    return (await session.execute(statement)).one_or_none()


async def valid_keys(session: AsyncSession, ids: Collection[str]) -> set[str]:
    """The subset of the keys that are neither revoked nor expired."""
    return set(await session.scalars(select(ApiKey.id).where(ApiKey.id.in_(ids), *_VALID)))


async def note_use(session: AsyncSession, key_id: str) -> None:
    await session.execute(update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=now()))


async def revoke(session: AsyncSession, project_id: str, key_id: str) -> None:
    """Revoke a key, unless it is already revoked."""
    live = (ApiKey.project_id == project_id, ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
    await session.execute(update(ApiKey).where(*live).values(revoked_at=now()))


async def any_key(session: AsyncSession) -> bool:
    """Whether there is any key at all."""
    return await session.scalar(select(ApiKey.id).limit(1)) is not None


def projects(project_id: str) -> Select[Project]:
    """The projects that a key may see: its own."""
    return select(Project).where(Project.id == project_id)
