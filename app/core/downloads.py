"""Sends a stored object or one range of it, with 304 for a client that has it, and by redirect where possible."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from app.core.errors import ApiError, RangeNotSatisfiable
from app.core.http import errors, is_head
from app.core.store import MissingObject, Store

LINK_SECONDS = 300.0
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")

DOWNLOAD_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole content", "content": {"application/octet-stream": {}}},
    206: {"description": "The requested range", "content": {"application/octet-stream": {}}},
    304: {"description": "The client's copy is current"},
    307: {"description": "Redirect to the object store"},
    **errors(404, 410, 416),
}
"""Responses of `download`, for a route's `responses`."""


class Gone(ApiError):
    """The row still exists, but its content does not."""

    status, type = 410, "not_found"


@dataclass(frozen=True)
class Content:
    """An object and its metadata for clients; `name` is its file name."""

    name: str
    key: str
    size: int
    sha256: str
    media_type: str = "application/octet-stream"

    @property
    def etag(self) -> str:
        return f'"{self.sha256}"'

    def headers(self) -> dict[str, str]:
        """Headers common to all responses."""
        digest = base64.b64encode(bytes.fromhex(self.sha256)).decode()
        return {
            "ETag": self.etag,
            "Repr-Digest": f"sha-256=:{digest}:",
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, no-cache",
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(self.name, safe='')}",
            "X-Accel-Buffering": "no",
            "X-Content-Type-Options": "nosniff",
        }


async def download(request: Request, store: Store, content: Content) -> Response:
    """Respond to a GET with the object. Raises `RangeNotSatisfiable` unless the range is one range within it."""
    headers = content.headers()
    if _has_it(request, content.etag):
        return Response(status_code=304, headers=headers)
    # Links are signed for GET only.
    link = None if is_head(request) else await store.presign(content.key, LINK_SECONDS)
    if link is not None:
        return RedirectResponse(link, 307, {**headers, "Cache-Control": "private, no-store"})
    bounds = _wanted(request, content)
    start, end = bounds or (0, content.size)
    headers["Content-Length"] = str(end - start)
    if bounds:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{content.size}"
    chunks = await _begun(store.stream(content.key, start, end))
    return StreamingResponse(chunks, 206 if bounds else 200, headers, content.media_type)


def _has_it(request: Request, etag: str) -> bool:
    given = request.headers.get("if-none-match", "")
    return given.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in given.split(","))


def _wanted(request: Request, content: Content) -> tuple[int, int] | None:
    """The requested bytes, the end exclusive; none for all."""
    given = request.headers.get("range", "")
    if not given.startswith("bytes=") or request.headers.get("if-range", content.etag) != content.etag:
        return None
    match = _RANGE.fullmatch(given.replace(" ", ""))
    first, last = match.groups() if match else ("", "")
    if first:
        start, end = int(first), min(int(last or content.size) + 1, content.size)
    else:
        start, end = max(content.size - int(last or 0), 0), content.size
    if start >= end:
        accepted = f"one range within bytes 0-{content.size - 1}" if content.size else "no range: the content is empty"
        raise RangeNotSatisfiable(
            "range_not_satisfiable",
            f"not satisfiable; accepted: {accepted}",
            headers={"Content-Range": f"bytes */{content.size}"},
        )
    return start, end


async def _begun(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Wait for the first chunk, so that a failing store still gives an error response."""
    try:
        first = await anext(chunks, b"")
    except MissingObject as error:
        raise Gone("content_gone", "the content was deleted") from error
    return _after(first, chunks)


async def _after(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in chunks:
        yield chunk
