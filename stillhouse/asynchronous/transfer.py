"""Uploads in parts with digests, and verified downloads; both can be resumed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from stillhouse.asynchronous.transport import AsyncTransport
from stillhouse.errors import ServiceError, TransferError, Unreachable
from stillhouse.local_files import Download, Progress, part_bytes, read_part, sha256_of
from stillhouse.objects import File, ModelFile, Upload


async def upload(transport: AsyncTransport, path: Path, *, resume: str | None, progress: Progress) -> File:
    """Send a file in parts, without those that the upload named by `resume` already has, and verify the whole.

    Raises `TransferError` with the id of the upload if it is interrupted.
    """
    transport, size = transport.patient(), (await asyncio.to_thread(path.stat)).st_size
    state = await _begin(transport, path, size) if resume is None else await _resume(transport, resume)
    try:
        await _send_parts(transport, state, path, size, progress)
        # Completing an upload again gives the same file.
        done = await transport.json("POST", f"/v1/uploads/{state.id}/complete", repeatable=True)
    except ServiceError:
        raise
    except Exception as error:
        message = f"the upload was interrupted ({error}); resume it by its id {state.id}"
        raise TransferError(message, upload_id=state.id) from error
    return File.model_validate(done)


async def _begin(transport: AsyncTransport, path: Path, size: int) -> Upload:
    """Open an upload; one that was opened twice expires."""
    announcement = {"name": path.name, "size": size, "sha256": await asyncio.to_thread(sha256_of, path)}
    return Upload.model_validate(await transport.json("POST", "/v1/uploads", json=announcement, repeatable=True))


async def _resume(transport: AsyncTransport, upload_id: str) -> Upload:
    return Upload.model_validate(await transport.json("GET", f"/v1/uploads/{upload_id}"))


async def _send_parts(transport: AsyncTransport, state: Upload, path: Path, size: int, progress: Progress) -> None:
    arrived = {part.number: part.sha256 for part in state.parts}
    most = part_bytes(size, state.max_part_bytes)
    for number in range(1, -(-size // most) + 1):
        part = await asyncio.to_thread(read_part, path, number, most)
        if arrived.get(number) != part.sha256:
            address = f"/v1/uploads/{state.id}/parts/{number}"
            await transport.send("PUT", address, content=part.content, headers=part.headers)
        progress(min(number * most, size), size)


async def download(transport: AsyncTransport, url: str, item: ModelFile, folder: Path, *, progress: Progress) -> Path:
    """Download a file into `folder`, or the subfolder in its name, and verify its digest.

    An interrupted download is continued. Raises `BadRequest` for a name that would leave the folder,
    `TransferError` for a wrong digest and if nothing is received for longer than an outage may last.
    """
    file = Download(item, folder)
    if await asyncio.to_thread(file.is_done):
        progress(item.size, item.size)
        return file.target
    file.begin()
    while not file.is_whole:
        try:
            await transport.outlast(_fetch_more, transport, url, file, progress)
        except Unreachable as error:
            broke = f"{item.name} was interrupted at {file.arrived} of {item.size} bytes ({error})"
            raise TransferError(broke) from error
    return await asyncio.to_thread(file.finish)


async def _fetch_more(transport: AsyncTransport, url: str, file: Download, progress: Progress) -> None:
    """Fetch data over one connection. Its error is raised if nothing was received."""
    before = file.arrived
    try:
        await _fetch_rest(transport, url, file, progress)
        if not file.is_whole:
            raise httpx.RemoteProtocolError("the response ended early")
    except (httpx.TransportError, ServiceError):
        if file.arrived <= before:
            raise


async def _fetch_rest(transport: AsyncTransport, url: str, file: Download, progress: Progress) -> None:
    async with transport.stream(url, file.headers(), redirects=True) as response:
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            file.clear()  # the server sends the whole file: not every store supports ranges
        async for block in response.aiter_bytes():
            progress(await asyncio.to_thread(file.append, block), file.item.size)
