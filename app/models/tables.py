"""Models: teachers and students, with their origin."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

import app.projects.tables  # noqa: F401  # foreign keys name it
from app.core.database import Base


class ModelRow(Base):
    """A model whose bundle is in the object store. Immutable."""

    __tablename__ = "models"
    __table_args__ = (Index("ix_models_list", "project_id", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str | None] = mapped_column(String(128))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), unique=True)
    """The job that trained it; none for an uploaded one."""
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"), index=True)
    """The uploaded file of its weights; none for a job's."""
    teacher_id: Mapped[str | None] = mapped_column(ForeignKey("models.id"), index=True)
    """The model it was distilled from, or extracted from."""
    config: Mapped[dict[str, Any] | None] = mapped_column(JSON, nullable=False)
    """The contract's `ModelConfig`; JSON's null for a folder with only a description in the Hugging Face layout."""
    parameters: Mapped[int] = mapped_column(BigInteger)
    """Trained weights; 0: unknown until its file is converted."""
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """The job's evaluation of the exported files; none for an uploaded model."""
    files: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    """Files of the bundle: `name`, `key`, `size`, `sha256`, `media_type`."""
    created_at: Mapped[float]
    deleted_at: Mapped[float | None]
