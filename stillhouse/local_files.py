"""Local side of transfers: parts and digests of uploads, partial files of downloads."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from stillhouse.errors import BadRequest, TransferError
from stillhouse.objects import ModelFile

PART_BYTES = 8 << 20
MOST_PARTS = 9_000
Progress = Callable[[int, int], None]
"""Called with the bytes transferred so far and the size of the file."""


def no_progress(done: int, total: int) -> None:
    """Ignore the progress."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FilePart(NamedTuple):
    """A part of an uploaded file."""

    content: bytes
    sha256: str
    """Digest in hexadecimal."""

    @property
    def headers(self) -> dict[str, str]:
        """Headers of its request: the digest as in RFC 9530."""
        return {"Content-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(self.sha256)).decode()}:"}


def part_bytes(size: int, most: int) -> int:
    """Size of a part: 8 MiB, or more where that would make too many parts; the same whenever an upload is resumed."""
    return min(most, max(PART_BYTES, -(-size // MOST_PARTS)))


def read_part(path: Path, number: int, size: int) -> FilePart:
    """Part `number` (from 1) of a file in parts of `size` bytes."""
    with path.open("rb") as file:
        file.seek((number - 1) * size)
        content = file.read(size)
    return FilePart(content, hashlib.sha256(content).hexdigest())


def safe_name(name: str) -> str:
    """Return `name` if it names a plain file within a folder. Raises `BadRequest` otherwise."""
    if not name or name.startswith(".") or any(sign in name for sign in "/\\:\0") or not name.isprintable():
        raise BadRequest(f"{name!r} is not a safe name for a file")
    return name


class Download:
    """A download into a folder: received data is in a hidden file until its digest is checked.

    Raises `BadRequest` for a name that would leave the folder.
    """

    def __init__(self, item: ModelFile, folder: Path) -> None:
        self.item = item
        self.target = folder.joinpath(*map(safe_name, item.name.split("/", maxsplit=1)))
        # The digest in the name ties a partial file to its content: another version of the file starts anew.
        self.partial = folder / f".{item.sha256[:16]}.part"

    def is_done(self) -> bool:
        """Whether the complete file already exists."""
        return (
            self.target.is_file()
            and self.target.stat().st_size == self.item.size
            and sha256_of(self.target) == self.item.sha256
        )

    def begin(self) -> None:
        """Create the folders."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.partial.touch()

    @property
    def arrived(self) -> int:
        """Bytes that have arrived."""
        return self.partial.stat().st_size

    @property
    def is_whole(self) -> bool:
        return self.arrived >= self.item.size

    def headers(self) -> dict[str, str]:
        """Headers of the request for the rest."""
        start = self.arrived
        return {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})

    def clear(self) -> None:
        """Discard received data, for a server that ignores ranges."""
        self.partial.write_bytes(b"")

    def append(self, block: bytes) -> int:
        """Append received data; returns the bytes received so far."""
        with self.partial.open("ab") as file:
            file.write(block)
            return file.tell()

    def finish(self) -> Path:
        """Check the digest and rename the file. Raises `TransferError`, and deletes the file, if it is wrong."""
        with self.partial.open("rb") as file:
            os.fsync(file.fileno())
        if sha256_of(self.partial) != self.item.sha256:
            self.partial.unlink()
            raise TransferError(f"{self.item.name} had a wrong sha256 and was deleted; try again")
        self.partial.replace(self.target)
        return self.target
