"""Rules of files: upload, verification and deletion.

Bytes are written to the object store first, outside any transaction; a row then publishes them. Objects that no row
refers to any more are deleted through the outbox, so that a crash between commit and deletion leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.core.database import Database
from app.core.discard import discard
from app.core.errors import ApiError, Invalid, NotFound, TooLarge, WrongState
from app.core.ids import new_id
from app.core.services import Services
from app.core.settings import Settings
from app.core.store import MissingObject, Store, StoredObject
from app.core.usage import users_of
from app.files import repository
from app.files.inspect import Inspection, inspect
from app.files.schemas import UploadRequest
from app.files.tables import FileRow, UploadPart, UploadRow

EXPIRED_PER_ROUND = 100
_INSPECTORS = ThreadPoolExecutor(2, "inspect")
"""Only two threads, because parsing a header of a few megabytes needs fifty times its size in memory."""


async def begin_upload(session: AsyncSession, project_id: str, wanted: UploadRequest, settings: Settings) -> UploadRow:
    """Open an upload. Raises `TooLarge` if its announced size exceeds the limit."""
    if wanted.size is not None and wanted.size > settings.max_file_bytes:
        raise TooLarge("file_too_large", f"files may have up to {settings.max_file_bytes} bytes", param="size")
    row = UploadRow(
        id=new_id("upload"),
        project_id=project_id,
        name=wanted.name,
        status="pending",
        size=wanted.size,
        sha256=wanted.sha256,
        created_at=now(),
        expires_at=now() + settings.upload_seconds,
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    return row


async def get_upload(session: AsyncSession, project_id: str, upload_id: str, *, lock: bool = False) -> UploadRow:
    row = await repository.upload(session, project_id, upload_id, lock=lock)
    if row is None:
        raise NotFound("upload", upload_id)
    return row


async def _open_upload(session: AsyncSession, project_id: str, upload_id: str, *, lock: bool = False) -> UploadRow:
    row = await get_upload(session, project_id, upload_id, lock=lock)
    status = "expired" if row.status == "pending" and await repository.is_over(session, row) else row.status
    if status != "pending":
        raise WrongState("wrong_state", f"the upload is {status}", param="status")
    return row


async def receive_part(
    services: Services, project_id: str, upload_id: str, number: int, chunks: AsyncIterator[bytes], sha256: str | None
) -> UploadPart:
    """Store one part as it is received. A part that is sent again replaces the earlier one."""
    async with services.database.read() as session:
        await _open_upload(session, project_id, upload_id)
    key = f"uploads/{upload_id}/{secrets.token_hex(8)}"
    stored = await services.store.write(key, chunks, services.settings.max_part_bytes)
    async with _deleted_if_refused(services.store, key):
        if not stored.size:
            raise Invalid("empty_body", "the part is empty")
        _require_digest(stored, sha256)
        async with services.database.write() as session:
            return await _keep_part(session, project_id, upload_id, number, stored, services.settings.max_file_bytes)


async def _keep_part(
    session: AsyncSession, project_id: str, upload_id: str, number: int, stored: StoredObject, max_bytes: int
) -> UploadPart:
    upload = await _open_upload(session, project_id, upload_id, lock=True)
    allowed = max_bytes if upload.size is None else upload.size
    if await repository.other_bytes(session, upload_id, number) + stored.size > allowed:
        raise TooLarge("file_too_large", f"with this part the file would have more than {allowed} bytes")
    before = await repository.part(session, upload_id, number)
    discard(session, [before.key] if before else [])
    row = {"upload_id": upload_id, "number": number, "size": stored.size, "sha256": stored.sha256, "key": stored.key}
    await repository.keep_part(session, row)
    return UploadPart(**row)


@asynccontextmanager
async def _deleted_if_refused(store: Store, *keys: str) -> AsyncIterator[None]:
    """Delete new objects if an `ApiError` rejects them.

    They are kept if the database fails: then it is unknown whether the row that refers to them was committed.
    """
    try:
        yield
    except ApiError:
        await store.delete(keys)
        raise


def _require_digest(stored: StoredObject, *expected: str | None) -> None:
    for sha256 in expected:
        if sha256 is not None and sha256 != stored.sha256:
            raise Invalid(
                "digest_mismatch", f"the received content has the SHA-256 {stored.sha256}, not {sha256}", param="sha256"
            )


async def complete_upload(services: Services, project_id: str, upload_id: str, sha256: str | None) -> FileRow:
    """Join the parts, verify the content, and publish it as a file. Repeating this returns the same file.

    Concurrent requests all do the work, and one of them publishes: there is no lock that a crash could leave behind.
    """
    try:
        return await _complete(services, project_id, upload_id, sha256)
    except WrongState:
        # Another request may have published the file, and deleted the parts, while this one read them.
        async with services.database.read() as session:
            upload = await get_upload(session, project_id, upload_id)
            if upload.file_id is None:
                raise
            return await get_file(session, project_id, upload.file_id)


async def _complete(services: Services, project_id: str, upload_id: str, sha256: str | None) -> FileRow:
    async with services.database.read() as session:
        # In this order: the parts of an upload that another request completes in between are not found missing.
        parts = await repository.parts(session, upload_id)
        upload = await _open_upload(session, project_id, upload_id)
    _require_complete(upload, parts)
    stored = await _join(services.store, parts)
    joined = [stored.key] if len(parts) > 1 else []
    async with _deleted_if_refused(services.store, *joined):
        _require_digest(stored, upload.sha256, sha256)
        inspection = await _inspect(services.store, stored)
        async with services.database.write() as session:
            file = await _publish(session, project_id, upload_id, parts, stored, inspection)
    if file.key != stored.key:
        await services.store.delete(joined)
    return file


def _require_complete(upload: UploadRow, parts: list[UploadPart]) -> None:
    missing = sorted(set(range(1, parts[-1].number + 1)) - {part.number for part in parts}) if parts else [1]
    if missing:
        shown = ", ".join(str(number) for number in missing[:10]) + (", …" if len(missing) > 10 else "")
        raise Invalid("missing_parts", f"parts are missing: {shown}", param="parts")
    size = sum(part.size for part in parts)
    if upload.size not in (None, size):
        raise Invalid("size_mismatch", f"the parts have {size} bytes in total, not {upload.size}", param="size")


async def _join(store: Store, parts: list[UploadPart]) -> StoredObject:
    """Join the parts to one object; a single part is used directly."""
    if len(parts) == 1:
        return StoredObject(parts[0].key, parts[0].size, parts[0].sha256)
    try:
        return await store.concatenate([part.key for part in parts], _file_key())
    except MissingObject as error:
        raise _changed() from error


def _file_key() -> str:
    return f"files/{secrets.token_hex(16)}"


def _changed() -> WrongState:
    return WrongState("upload_changed", "the upload changed while it was completed; try again")


async def _inspect(store: Store, stored: StoredObject) -> Inspection:
    def read() -> Inspection:
        with store.reader(stored.key) as file:
            return inspect(file, stored.size)

    try:
        return await asyncio.get_running_loop().run_in_executor(_INSPECTORS, read)
    except MissingObject as error:
        raise _changed() from error


async def _publish(
    session: AsyncSession,
    project_id: str,
    upload_id: str,
    parts: list[UploadPart],
    stored: StoredObject,
    inspection: Inspection,
) -> FileRow:
    upload = await get_upload(session, project_id, upload_id, lock=True)
    if upload.file_id is not None:
        return await get_file(session, project_id, upload.file_id)
    await _open_upload(session, project_id, upload_id)
    keys = await repository.drop_parts(session, upload_id)
    if set(keys) != {part.key for part in parts}:
        raise _changed()
    file = await _insert_file(session, project_id, upload.name, stored, inspection)
    upload.status, upload.file_id = "completed", file.id
    discard(session, [key for key in keys if key != file.key])
    return file


async def _insert_file(
    session: AsyncSession, project_id: str, name: str, stored: StoredObject, inspection: Inspection
) -> FileRow:
    file = FileRow(
        id=new_id("file"),
        project_id=project_id,
        name=name,
        format=inspection.format,
        size=stored.size,
        sha256=stored.sha256,
        key=stored.key,
        summary=inspection.summary,
        created_at=now(),
    )
    session.add(file)
    await session.flush()
    await session.refresh(file)
    return file


async def cancel_upload(session: AsyncSession, project_id: str, upload_id: str) -> UploadRow:
    """Cancel an upload; a cancelled or expired one is unchanged."""
    upload = await get_upload(session, project_id, upload_id, lock=True)
    if upload.status == "completed":
        raise WrongState("wrong_state", "the upload is completed; delete its file instead", param="status")
    if upload.status == "pending":
        await _close(session, upload, "cancelled")
    return upload


async def _close(session: AsyncSession, upload: UploadRow, status: str) -> None:
    upload.status = status
    discard(session, await repository.drop_parts(session, upload.id))


async def expire_uploads(database: Database) -> int:
    """Close expired uploads; returns their number."""
    async with database.write() as session:
        overdue = await repository.overdue_uploads(session, EXPIRED_PER_ROUND)
        for upload in overdue:
            await _close(session, upload, "expired")
    return len(overdue)


async def receive_file(
    services: Services, project_id: str, name: str, chunks: AsyncIterator[bytes], sha256: str | None
) -> FileRow:
    """Store, verify and publish a small file in one request."""
    stored = await services.store.write(_file_key(), chunks, services.settings.max_part_bytes)
    async with _deleted_if_refused(services.store, stored.key):
        if not stored.size:
            raise Invalid("empty_body", "the file is empty")
        _require_digest(stored, sha256)
        inspection = await _inspect(services.store, stored)
        async with services.database.write() as session:
            return await _insert_file(session, project_id, name, stored, inspection)


async def get_file(session: AsyncSession, project_id: str, file_id: str, *, lock: bool = False) -> FileRow:
    row = await repository.file(session, project_id, file_id, lock=lock)
    if row is None:
        raise NotFound("file", file_id)
    return row


async def delete_file(session: AsyncSession, project_id: str, file_id: str) -> None:
    """Delete a file, unless a job that is not final or a model uses it."""
    file = await get_file(session, project_id, file_id, lock=True)
    if users := await users_of(session, "file", project_id, file_id):
        raise WrongState("file_in_use", f"the file is used by {', '.join(users)}")
    await repository.mark_deleted(session, file_id)
    discard(session, [file.key])
