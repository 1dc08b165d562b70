"""Models: teachers and students, with where they come from."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

import app.projects.tables  # noqa: F401  # foreign keys name it
from app.core.database import Base


class ModelRow(Base):
    """A model whose bundle lies in the object store. It never changes."""

    __tablename__ = "models"
    __table_args__ = (Index("ix_models_list", "project_id", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str | None] = mapped_column(String(128))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), unique=True)
    """The job that made it; none for an uploaded one."""
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"), index=True)
    """The file that its weights were uploaded as; none for a job's."""
    teacher_id: Mapped[str | None] = mapped_column(ForeignKey("models.id"), index=True)
    """The model it learned from."""
    config: Mapped[dict[str, Any] | None] = mapped_column(JSON, nullable=False)
    """The contract's `ModelConfig`; JSON's null for a folder that only describes itself in the Hugging Face way."""
    parameters: Mapped[int] = mapped_column(BigInteger)
    """Trained weights; 0: not known before its file is converted."""
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """The job's evaluation of the exported files; none for an uploaded model."""
    files: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    """Files of the bundle: `name`, `key`, `size`, `sha256`, `media_type`."""
    created_at: Mapped[float]
    deleted_at: Mapped[float | None]
