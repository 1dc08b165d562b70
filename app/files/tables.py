"""Uploaded files, and the parts of open uploads."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

import app.projects.tables  # noqa: F401  # foreign keys name it
from app.core.database import Base


class FileRow(Base):
    """A complete, verified file. It never changes."""

    __tablename__ = "files"
    __table_args__ = (Index("ix_files_list", "project_id", "id"), Index("ix_files_sha256", "project_id", "sha256"))

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(255))
    format: Mapped[str] = mapped_column(String(16))
    """Recognised format, such as `npz` or `safetensors`."""
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(String(255), index=True)
    """Key in the object store."""
    summary: Mapped[dict[str, Any]] = mapped_column(JSON)
    """Headers of the contents: for arrays and weights `{"arrays": {name: {"shape": [...], "dtype": "f4"}}}`."""
    created_at: Mapped[float]
    deleted_at: Mapped[float | None]


class UploadRow(Base):
    """An upload of a file in parts."""

    __tablename__ = "uploads"
    __table_args__ = (Index("ix_uploads_expiry", "status", "expires_at"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(255))
    status: Mapped[str] = mapped_column(String(16))
    """`pending`, `completed`, `cancelled` or `expired`."""
    size: Mapped[int | None] = mapped_column(BigInteger)
    """Announced total size, if any."""
    sha256: Mapped[str | None] = mapped_column(String(64))
    """Announced digest of the whole content, if any."""
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    created_at: Mapped[float]
    expires_at: Mapped[float]


class UploadPart(Base):
    """One part; sending a part again replaces it."""

    __tablename__ = "upload_parts"

    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    """From 1; parts are joined in this order."""
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(String(255), index=True)
    """Key in the object store."""
