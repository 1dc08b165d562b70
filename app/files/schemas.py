"""Shapes of the requests and answers about files and uploads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from app.core.clock import Time
from app.core.views import View
from app.files.inspect import Format
from app.files.tables import FileRow, UploadPart, UploadRow
from app.recipe.base import Spec

MAX_PARTS = 10_000
FileName = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
PartNumber = Annotated[int, Field(ge=1, le=MAX_PARTS)]


class UploadRequest(Spec):
    """A file to come, part by part."""

    name: FileName
    """What the file is called."""
    size: int | None = Field(None, ge=1, le=2**63 - 1)
    """Size of the whole in bytes, if known; it is then held against what came."""
    sha256: Sha256 | None = None
    """SHA-256 of the whole in hexadecimal, if known; it is then held against what came."""


class Completion(Spec):
    """What may be said when all parts are there."""

    sha256: Sha256 | None = None
    """SHA-256 of the whole in hexadecimal, for a client that only knows it now."""


class PartView(View):
    """A part that arrived."""

    object: Literal["upload.part"] = "upload.part"
    number: int
    """Number of the part, from 1."""
    size: int
    """Size in bytes."""
    sha256: str
    """SHA-256 of the part in hexadecimal."""

    @classmethod
    def of(cls, row: UploadPart) -> PartView:
        return cls.model_validate(row, from_attributes=True)


class UploadView(View):
    """A file on its way in. A client that was cut off sends the parts that are missing here."""

    id: str
    """Id of the upload."""
    object: Literal["upload"] = "upload"
    name: str
    """What the file is called."""
    status: Literal["pending", "completed", "cancelled", "expired"]
    """State of the upload."""
    size: int | None
    """Size of the whole in bytes, if it was announced."""
    sha256: str | None
    """SHA-256 of the whole in hexadecimal, if it was announced."""
    parts: list[PartView]
    """The parts that have arrived, in order."""
    max_part_bytes: int
    """Largest part that is accepted."""
    file_id: str | None
    """The file that it became."""
    created_at: Time
    """When it was opened."""
    expires_at: Time
    """When it is removed, unless it is completed."""

    @classmethod
    def of(cls, row: UploadRow, parts: list[UploadPart], max_part_bytes: int) -> UploadView:
        own = {name: getattr(row, name) for name in cls.model_fields if name in row.__table__.columns}
        return cls(**own, parts=[PartView.of(part) for part in parts], max_part_bytes=max_part_bytes)


class ArrayView(View):
    """Header of one array or tensor."""

    shape: list[int]
    """Length of each axis."""
    dtype: str
    """In NumPy's notation without byte order (`u1`, `f4`); types that NumPy lacks by name (`bf16`)."""


class FileView(View):
    """A complete, verified file. It never changes."""

    id: str
    """Id of the file."""
    object: Literal["file"] = "file"
    name: str
    """What the file is called."""
    format: Format
    """What the file is, told from its content."""
    size: int
    """Size in bytes."""
    sha256: str
    """SHA-256 of the content in hexadecimal."""
    created_at: Time
    """When it was complete."""

    @classmethod
    def of(cls, row: FileRow) -> FileView:
        return cls.model_validate(row, from_attributes=True)


class FileDetailView(FileView):
    """A file with the headers of what is inside."""

    arrays: dict[str, ArrayView]
    """Of a NumPy archive or a file of weights."""
    first_line: str | None = None
    """Of a file of text: the names of its columns, or its first object."""

    @classmethod
    def of(cls, row: FileRow) -> FileDetailView:
        told = {"arrays": row.summary.get("arrays", {}), "first_line": row.summary.get("first_line")}
        return cls(**FileView.of(row).model_dump(), **told)
