"""HTTP of files and uploads."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from app.core.downloads import DOWNLOAD_RESPONSES, Content, download
from app.core.errors import FieldError, Invalid
from app.core.http import errors, raw_body
from app.core.json_body import JsonRoute
from app.core.paging import Page, Paging, page
from app.core.services import ServicesDep
from app.core.views import DeletedView
from app.files import repository, service
from app.files.schemas import (
    Completion,
    FileDetailView,
    FileName,
    FileView,
    PartNumber,
    PartView,
    Sha256,
    UploadRequest,
    UploadView,
)
from app.files.tables import FileRow
from app.projects.auth import Caller, require

router = APIRouter(prefix="/v1", route_class=JsonRoute)
Reader = Annotated[Caller, Depends(require("read"))]
Writer = Annotated[Caller, Depends(require("write"))]
RAW_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_SHA256_FIELD = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/=]{44}):\s*(?:,|$)")


def _body_digest(
    content_digest: Annotated[str | None, Header(description="RFC 9530: `sha-256=:<base64>:`")] = None,
    x_part_sha256: Annotated[Sha256 | None, Header(description="The same digest in hexadecimal")] = None,
) -> str | None:
    """SHA-256 of the body in hexadecimal, if the client sent it; digests by other functions are ignored."""
    if content_digest is None or "sha-256=" not in content_digest.lower():
        return x_part_sha256
    match = _SHA256_FIELD.search(content_digest)
    try:
        return base64.b64decode(match[1], validate=True).hex() if match else _refuse_digest()
    except binascii.Error:
        return _refuse_digest()


def _refuse_digest() -> str:
    wrong = FieldError(param="content-digest", message="can't be read", accepted="sha-256=:<44 base64 characters>:")
    raise Invalid.fields([wrong])


BodyDigest = Annotated[str | None, Depends(_body_digest)]


@router.post("/uploads", status_code=201, tags=["uploads"], responses=errors(400, 413, 415))
async def create_upload(wanted: UploadRequest, caller: Writer, services: ServicesDep) -> UploadView:
    """Open an upload; then send its parts, in any order, and complete it."""
    async with services.database.write() as session:
        row = await service.begin_upload(session, caller.project_id, wanted, services.settings)
    return UploadView.of(row, [], services.settings.max_part_bytes)


@router.get("/uploads/{upload_id}", tags=["uploads"], responses=errors(404))
async def get_upload(upload_id: str, caller: Reader, services: ServicesDep) -> UploadView:
    """An upload and the parts that have arrived."""
    async with services.database.read() as session:
        row = await service.get_upload(session, caller.project_id, upload_id)
        parts = await repository.parts(session, upload_id)
    return UploadView.of(row, parts, services.settings.max_part_bytes)


@router.put(
    "/uploads/{upload_id}/parts/{number}",
    tags=["uploads"],
    responses=errors(404, 409, 413, 429),
    openapi_extra=RAW_BODY,
)
async def put_part(
    upload_id: str, number: PartNumber, request: Request, caller: Writer, services: ServicesDep, digest: BodyDigest
) -> PartView:
    """Send one part, as the raw body. Its digest is checked if it is given; sending a part again replaces it."""
    body = raw_body(request, services.settings.max_part_bytes)
    with services.uploads.taken(caller.key_id):
        return PartView.of(await service.receive_part(services, caller.project_id, upload_id, number, body, digest))


@router.post(
    "/uploads/{upload_id}/complete", status_code=201, tags=["uploads"], responses=errors(400, 404, 409, 413, 415)
)
async def complete_upload(
    upload_id: str, caller: Writer, services: ServicesDep, completion: Completion = Completion()
) -> FileDetailView:
    """Join the parts, verify and inspect the content, and create the file. Idempotent."""
    file = await service.complete_upload(services, caller.project_id, upload_id, completion.sha256)
    return FileDetailView.of(file)


@router.post("/uploads/{upload_id}/cancel", tags=["uploads"], responses=errors(404, 409))
async def cancel_upload(upload_id: str, caller: Writer, services: ServicesDep) -> UploadView:
    """Cancel an upload; its parts are deleted."""
    async with services.database.write() as session:
        row = await service.cancel_upload(session, caller.project_id, upload_id)
    return UploadView.of(row, [], services.settings.max_part_bytes)


@router.post("/files", status_code=201, tags=["files"], responses=errors(413, 429), openapi_extra=RAW_BODY)
async def create_file(
    name: Annotated[FileName, Query(description="Name of the file.")],
    request: Request,
    caller: Writer,
    services: ServicesDep,
    digest: BodyDigest,
) -> FileDetailView:
    """Send a small file (up to one part of an upload) in one request, as the raw body."""
    body = raw_body(request, services.settings.max_part_bytes)
    with services.uploads.taken(caller.key_id):
        return FileDetailView.of(await service.receive_file(services, caller.project_id, name, body, digest))


@router.get("/files", tags=["files"])
async def list_files(
    caller: Reader,
    services: ServicesDep,
    paging: Paging,
    sha256: Annotated[Sha256 | None, Query(description="Only files with this content.")] = None,
) -> Page[FileView]:
    """The project's files, newest first."""
    async with services.database.read() as session:
        found = await page(
            session,
            repository.files(caller.project_id, sha256),
            FileRow.id,
            paging,
            FileRow.project_id == caller.project_id,
        )
    return found.map(FileView.of)


@router.get("/files/{file_id}", tags=["files"], responses=errors(404))
async def get_file(file_id: str, caller: Reader, services: ServicesDep) -> FileDetailView:
    """One file, with the headers of the arrays inside."""
    async with services.database.read() as session:
        return FileDetailView.of(await service.get_file(session, caller.project_id, file_id))


@router.get("/files/{file_id}/content", tags=["files"], responses=DOWNLOAD_RESPONSES, response_class=Response)
async def get_file_content(file_id: str, request: Request, caller: Reader, services: ServicesDep) -> Response:
    """The content of a file, or one range of it."""
    async with services.database.read() as session:
        row = await service.get_file(session, caller.project_id, file_id)
    return await download(request, services.store, Content(row.name, row.key, row.size, row.sha256))


@router.delete("/files/{file_id}", tags=["files"], responses=errors(404, 409))
async def delete_file(file_id: str, caller: Writer, services: ServicesDep) -> DeletedView:
    """Delete a file that no unfinished job and no model uses."""
    async with services.database.write() as session:
        await service.delete_file(session, caller.project_id, file_id)
    return DeletedView(id=file_id, object="file")
