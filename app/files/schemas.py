"""Shapes of the requests and answers about files and uploads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from app.core.clock import Time
from app.files.inspect import Format
from app.files.tables import File, Upload, UploadPart
from app.recipe.base import Spec

MAX_PARTS = 10_000
FileName = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
PartNumber = Annotated[int, Field(ge=1, le=MAX_PARTS)]


class UploadRequest(Spec):
    """A file to come, part by part."""

    name: FileName
    size: int | None = Field(None, ge=1, le=2**63 - 1)
    """Size of the whole in bytes, if known; it is then held against what came."""
    sha256: Sha256 | None = None
    """SHA-256 of the whole in hexadecimal, if known; it is then held against what came."""


class Completion(Spec):
    """What may be said when all parts are there."""

    sha256: Sha256 | None = None
    """SHA-256 of the whole in hexadecimal, for a client that only knows it now."""


class PartView(BaseModel):
    """A part that arrived."""

    object: Literal["upload.part"] = "upload.part"
    number: int
    size: int
    sha256: str

    @classmethod
    def of(cls, row: UploadPart) -> PartView:
        return cls.model_validate(row, from_attributes=True)


class UploadView(BaseModel):
    """A file on its way in. A client that was cut off sends the parts that are missing here."""

    id: str
    object: Literal["upload"] = "upload"
    name: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    size: int | None
    sha256: str | None
    parts: list[PartView]
    max_part_bytes: int
    """Largest part that is accepted."""
    file_id: str | None
    """The file that it became."""
    created_at: Time
    expires_at: Time

    @classmethod
    def of(cls, row: Upload, parts: list[UploadPart], max_part_bytes: int) -> UploadView:
        own = {name: getattr(row, name) for name in cls.model_fields if name in row.__table__.columns}
        return cls(**own, parts=[PartView.of(part) for part in parts], max_part_bytes=max_part_bytes)


class ArrayView(BaseModel):
    """Header of one array or tensor."""

    shape: list[int]
    dtype: str
    """In NumPy's notation without byte order (`u1`, `f4`); types that NumPy lacks by name (`bf16`)."""


class FileView(BaseModel):
    """A complete, verified file. It never changes."""

    id: str
    object: Literal["file"] = "file"
    name: str
    format: Format
    size: int
    sha256: str
    created_at: Time

    @classmethod
    def of(cls, row: File) -> FileView:
        return cls.model_validate(row, from_attributes=True)


class FileDetailView(FileView):
    """A file with the headers of what is inside."""

    arrays: dict[str, ArrayView]
    """Of a NumPy archive or a file of weights."""
    first_line: str | None = None
    """Of a file of text: the names of its columns, or its first object."""

    @classmethod
    def of(cls, row: File) -> FileDetailView:
        told = {"arrays": row.summary.get("arrays", {}), "first_line": row.summary.get("first_line")}
        return cls(**FileView.of(row).model_dump(), **told)


class DeletedView(BaseModel):
    """Something that is gone."""

    id: str
    object: Literal["file", "model", "job"]
    deleted: Literal[True] = True
