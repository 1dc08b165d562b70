"""Files to and from the service: in parts and with digests on the way up, resumed and verified on the way down."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import httpx

from stillhouse.errors import BadRequest, ServiceError, TransferError
from stillhouse.objects import Artifact, File, Upload
from stillhouse.transport import Transport

PART_BYTES = 8 << 20
MOST_PARTS = 9_000
Progress = Callable[[int, int], None]
"""Called with the bytes that have passed, and the size of the whole."""


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""


def sha256_of(path: Path) -> str:
    """Digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def upload(transport: Transport, path: Path, *, resume: str | None = None, progress: Progress = no_progress) -> File:
    """Send a file in parts, skipping those that the upload named by `resume` already has, and have it verified whole.

    Raises `TransferError` with the id to resume by when it breaks off.
    """
    transport, size, sha256 = transport.patient(), path.stat().st_size, sha256_of(path)
    if resume is None:
        announcement = {"name": path.name, "size": size, "sha256": sha256}
        state = Upload.model_validate(transport.json("POST", "/v1/uploads", json=announcement, repeatable=True))
    else:
        state = Upload.model_validate(transport.json("GET", f"/v1/uploads/{resume}"))
    try:
        _send_parts(transport, state, path, size, progress)
        done = transport.json("POST", f"/v1/uploads/{state.id}/complete", repeatable=True)
    except ServiceError:
        raise
    except Exception as error:
        raise TransferError(f"the upload broke off ({error}); go on with --resume {state.id}") from error
    return File.model_validate(done)


def _send_parts(transport: Transport, state: Upload, path: Path, size: int, progress: Progress) -> None:
    arrived = {part.number: part.sha256 for part in state.parts}
    sent = 0
    with path.open("rb") as file:
        for number, part in enumerate(_parts(file, part_bytes(size, state.max_part_bytes)), start=1):
            digest = hashlib.sha256(part)
            if arrived.get(number) != digest.hexdigest():
                field = f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
                address = f"/v1/uploads/{state.id}/parts/{number}"
                transport.send("PUT", address, content=part, headers={"Content-Digest": field})
            sent += len(part)
            progress(sent, size)


def part_bytes(size: int, most: int) -> int:
    """Size of a part: 8 MiB, or more where that would make too many parts; the same whenever an upload goes on."""
    return min(most, max(PART_BYTES, -(-size // MOST_PARTS)))


def _parts(file: BinaryIO, size: int) -> Iterator[bytes]:
    while part := file.read(size):
        yield part


def download(transport: Transport, url: str, item: Artifact, folder: Path, *, progress: Progress = no_progress) -> Path:
    """Fetch a file into `folder`, or the folder in it that its name begins with, going on where an earlier try ended.

    It gets its name once its digest is right.

    Raises `BadRequest` for a name that would leave the folder, `TransferError` for a wrong digest.
    """
    target = folder.joinpath(*map(safe_name, item.name.split("/", maxsplit=1)))
    if target.is_file() and target.stat().st_size == item.size and sha256_of(target) == item.sha256:
        progress(item.size, item.size)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # The digest in the name ties a leftover to its content: another version of the file starts afresh.
    partial = folder / f".{item.sha256[:16]}.part"
    _fetch(transport, url, item, partial, progress)
    if sha256_of(partial) != item.sha256:
        partial.unlink()
        raise TransferError(f"{item.name} arrived with a wrong sha256 and was removed; try again")
    partial.replace(target)
    return target


def safe_name(name: str) -> str:
    """Return `name` if it names a plain file within a folder. Raises `BadRequest` otherwise."""
    if not name or name.startswith(".") or any(sign in name for sign in "/\\:\0") or not name.isprintable():
        raise BadRequest(f"{name!r} is not a safe name for a file")
    return name


def _fetch(transport: Transport, url: str, item: Artifact, partial: Path, progress: Progress) -> None:
    """Fill `partial` up to the file's size; gives up when nothing has come for as long as an outage may last."""
    outage = transport.outage()
    while not partial.is_file() or _size(partial) < item.size:
        before = _size(partial)
        try:
            _fetch_rest(transport, url, item, partial, progress)
        except (httpx.TransportError, ServiceError) as error:
            if _size(partial) > before:
                outage.over()
            try:
                outage.wait(error)
            except httpx.TransportError:
                raise TransferError(f"{item.name} broke off at {before} of {item.size} bytes ({error})") from error


def _fetch_rest(transport: Transport, url: str, item: Artifact, partial: Path, progress: Progress) -> None:
    start = _size(partial)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with transport.stream(url, headers, redirects=True) as response, partial.open("ab") as file:
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            file.truncate(0)  # the server sends the whole: not every store knows ranges
        for block in response.iter_bytes():
            file.write(block)
            progress(file.tell(), item.size)
        file.flush()
        os.fsync(file.fileno())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
