"""Rules of models: registration and deletion."""

from __future__ import annotations

import secrets
from dataclasses import asdict

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.core.discard import discard
from app.core.errors import FieldError, Invalid, NotFound, WrongState
from app.core.ids import new_id
from app.core.services import Services
from app.core.store import StoredObject
from app.core.usage import users_of
from app.files import repository as file_repository
from app.files.tables import FileRow
from app.models import repository
from app.models.schemas import ModelRequest
from app.models.tables import ModelRow
from app.models.uploads import Bundle, bundle_of, once

WRITTEN = "models/"
"""Prefix of the keys of files that the service wrote for an uploaded model."""


async def get_model(session: AsyncSession, project_id: str, model_id: str, *, lock: bool = False) -> ModelRow:
    row = await repository.model(session, project_id, model_id, lock=lock)
    if row is None:
        raise NotFound("model", model_id)
    return row


async def register(services: Services, project_id: str, wanted: ModelRequest) -> ModelRow:
    """Create a model from uploaded files. Raises `Invalid` with every problem."""
    async with services.database.read() as session:
        files = await _files(session, project_id, wanted)
    bundle = await bundle_of(wanted, files, services.store, services.settings)
    folder = f"models/{secrets.token_hex(16)}"
    written = {
        name: await services.store.write(f"{folder}/{name}", once(content), len(content))
        for name, content in bundle.documents.items()
    }
    async with services.database.write() as session:
        await _files(session, project_id, wanted, lock=True)
        return await _insert(session, project_id, wanted, bundle, written)


async def _files(
    session: AsyncSession, project_id: str, wanted: ModelRequest, *, lock: bool = False
) -> dict[str, FileRow]:
    """The uploaded files by the field that names each; raises `Invalid` for missing ones."""
    found: dict[str, FileRow] = {}
    missing = []
    for field, file_id in sorted(wanted.references.items(), key=lambda item: item[1]):  # locked in a fixed order
        file = await file_repository.file(session, project_id, file_id, lock=lock)
        if file is None:
            message = f"there is no file {file_id!r}"
            missing.append(FieldError(param=field, message=message, accepted="the id of an uploaded file"))
        else:
            found[field] = file
    if missing:
        raise Invalid.fields(missing)
    return found


async def _insert(
    session: AsyncSession, project_id: str, wanted: ModelRequest, bundle: Bundle, written: dict[str, StoredObject]
) -> ModelRow:
    documents = [{"name": name, "media_type": media_type(name), **asdict(stored)} for name, stored in written.items()]
    uploaded = [
        {"name": name, "media_type": media_type(name), "key": file.key, "size": file.size, "sha256": file.sha256}
        for name, file in bundle.files.items()
    ]
    weights = [file for name, file in bundle.files.items() if not _is_text(name)]
    row = ModelRow(
        id=new_id("model"),
        project_id=project_id,
        name=wanted.name,
        file_id=weights[0].id if len(weights) == 1 else None,
        config=bundle.config and bundle.config.model_dump(mode="json"),
        parameters=bundle.parameters,
        files=sorted([*documents, *uploaded], key=lambda file: str(file["name"])),
        created_at=now(),
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    return row


def _is_text(name: str) -> bool:
    return name.endswith((".json", ".txt"))


def media_type(name: str) -> str:
    """Media type of a file of a model, by its suffix."""
    known = {".json": "application/json", ".txt": "text/plain"}
    return known.get(name[name.rfind(".") :], "application/octet-stream")


async def delete_model(session: AsyncSession, project_id: str, model_id: str) -> None:
    """Delete a model, unless a job that is not final uses it.

    The artifacts of its job are the same files and are deleted too; an uploaded file remains.
    """
    model = await get_model(session, project_id, model_id, lock=True)
    if users := await users_of(session, "model", project_id, model_id):
        raise WrongState("model_in_use", f"the model is used by {', '.join(users)}")
    await repository.mark_deleted(session, model_id)
    mine = [file["key"] for file in model.files if model.job_id is not None or file["key"].startswith(WRITTEN)]
    discard(session, mine)
