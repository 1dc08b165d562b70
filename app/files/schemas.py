"""Requests and responses of files and uploads."""

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
    """A file to be uploaded in parts."""

    name: FileName
    """Name of the file."""
    size: int | None = Field(None, ge=1, le=2**63 - 1)
    """Total size in bytes, if known; it is then checked."""
    sha256: Sha256 | None = None
    """SHA-256 of the whole content in hexadecimal, if known; it is then checked."""


class Completion(Spec):
    """Optional data of a completion."""

    sha256: Sha256 | None = None
    """SHA-256 of the whole content in hexadecimal, if it was not known before."""


class PartView(View):
    """A part that has arrived."""

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
    """An upload. After an interruption, a client sends the parts that are missing here."""

    id: str
    """Id of the upload."""
    object: Literal["upload"] = "upload"
    name: str
    """Name of the file."""
    status: Literal["pending", "completed", "cancelled", "expired"]
    """State of the upload."""
    size: int | None
    """Announced total size in bytes, if any."""
    sha256: str | None
    """Announced SHA-256 of the whole content in hexadecimal, if any."""
    parts: list[PartView]
    """The parts that have arrived, in order."""
    max_part_bytes: int
    """Largest accepted part."""
    file_id: str | None
    """The file created by completing it."""
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
    """NumPy's notation without byte order (`u1`, `f4`); types that NumPy lacks have a name (`bf16`)."""


class FileView(View):
    """A complete, verified file. It never changes."""

    id: str
    """Id of the file."""
    object: Literal["file"] = "file"
    name: str
    """Name of the file."""
    format: Format
    """Format of the file, recognised from its content."""
    size: int
    """Size in bytes."""
    sha256: str
    """SHA-256 of the content in hexadecimal."""
    created_at: Time
    """When it was completed."""

    @classmethod
    def of(cls, row: FileRow) -> FileView:
        return cls.model_validate(row, from_attributes=True)


class FileDetailView(FileView):
    """A file with the headers of its contents."""

    arrays: dict[str, ArrayView]
    """Arrays of a NumPy archive, or tensors of a file of weights."""
    first_line: str | None = None
    """First line of a text file: the names of its columns, or its first object."""

    @classmethod
    def of(cls, row: FileRow) -> FileDetailView:
        summary = {"arrays": row.summary.get("arrays", {}), "first_line": row.summary.get("first_line")}
        return cls(**FileView.of(row).model_dump(), **summary)
