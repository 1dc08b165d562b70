"""Rules of projects and keys."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import private
from app.core.clock import now
from app.core.database import Database
from app.core.errors import Forbidden, NotFound
from app.core.ids import new_id
from app.core.settings import Settings
from app.projects import keys, repository
from app.projects.schemas import KeyRequest
from app.projects.tables import ApiKey, Project

FIRST_PROJECT = "default"


def require_scopes(wanted: KeyRequest, held: frozenset[str]) -> None:
    """Raises `Forbidden` for a key with more scopes than the one that creates it."""
    if beyond := [scope for scope in wanted.scopes if scope not in held]:
        message = f"a key can't create a key with scopes that it lacks: this one lacks {' and '.join(beyond)}"
        raise Forbidden("missing_scope", message, param="scopes")


async def create_key(session: AsyncSession, project_id: str, wanted: KeyRequest, plain: str, secret: bytes) -> ApiKey:
    """Store a key's digest."""
    row = ApiKey(
        id=new_id("key"),
        project_id=project_id,
        name=wanted.name,
        hint=plain[: keys.HINT_CHARACTERS],
        digest=keys.digest(plain, secret),
        scopes=list(wanted.scopes),
        created_at=now(),
        expires_at=None if wanted.expires_in_seconds is None else now() + wanted.expires_in_seconds,
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    return row


async def get_key(session: AsyncSession, project_id: str, key_id: str) -> ApiKey:
    row = await repository.key(session, project_id, key_id)
    if row is None:
        raise NotFound("key", key_id)
    return row


async def revoke_key(session: AsyncSession, project_id: str, key_id: str) -> ApiKey:
    """Revoke a key permanently; a revoked one is unchanged."""
    await repository.revoke(session, project_id, key_id)
    return await get_key(session, project_id, key_id)


async def get_project(session: AsyncSession, project_id: str, wanted: str) -> Project:
    """The caller's own project; raises `NotFound` for any other."""
    row = await session.scalar(repository.projects(project_id).where(Project.id == wanted))
    if row is None:
        raise NotFound("project", wanted)
    return row


async def ensure_first_key(database: Database, settings: Settings) -> str | None:
    """In an empty database create a project and a key with all scopes; returns the key if it was generated.

    A generated key is also written to `data_dir/key`, readable only by its owner. If several processes start at once,
    one creates them: the others fail on the project's unique name.
    """
    async with database.read() as session:
        if await repository.any_key(session):
            return None
    given = settings.bootstrap_key.get_secret_value() if settings.bootstrap_key else None
    if given is not None and not keys.is_well_formed(given):
        raise ValueError("bootstrap_key does not have the format of an API key")
    plain = given or keys.new_key()
    try:
        async with database.write() as session:
            project = Project(id=new_id("proj"), name=FIRST_PROJECT, created_at=now())
            session.add(project)
            await session.flush()
            wanted = KeyRequest(name="first", scopes=["read", "write", "admin"])
            await create_key(session, project.id, wanted, plain, settings.secret_bytes)
            if given is None:  # before the commit: without a readable key nobody could log in
                _keep(settings.data_dir.expanduser() / "key", plain)
    except IntegrityError:
        return None
    return None if given else plain


def _keep(path: Path, plain: str) -> None:
    private.make_file(path)
    path.write_text(plain + "\n")
