"""Shapes of the requests and answers about models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from app.core.clock import Time
from app.models.tables import Model
from app.recipe.base import Reference, Spec
from app.recipe.job import Name
from app.recipe.model import ModelConfig


class ModelRequest(Spec):
    """A model of one's own, to be used as a teacher."""

    file: Reference
    """Id of the uploaded safetensors file with the weights."""
    config: ModelConfig
    name: Name | None = None


class ModelFileView(BaseModel):
    """A file of a model's bundle."""

    name: str
    size: int
    sha256: str
    media_type: str


class ModelView(BaseModel):
    """A teacher or a student. It never changes."""

    id: str
    object: Literal["model"] = "model"
    name: str | None
    job_id: str | None
    """The job that made it; none for an uploaded one."""
    file_id: str | None
    """The file that its weights were uploaded as; none for a job's."""
    teacher_id: str | None
    """The model that it learned from."""
    config: ModelConfig
    parameters: int
    files: list[ModelFileView]
    created_at: Time

    @classmethod
    def of(cls, row: Model) -> ModelView:
        return cls(**_columns(cls, row))


class ModelDetailView(ModelView):
    """A model with its evaluation and its descendants."""

    report: dict[str, Any] | None
    """The job's evaluation of the exported files; none for an uploaded model."""
    children: list[str]
    """Ids of the newest models that learned from it, at most a hundred."""

    @classmethod
    def with_children(cls, row: Model, children: list[str]) -> ModelDetailView:
        return cls(**_columns(cls, row), children=children)


def _columns(view: type[ModelView], row: Model) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in view.model_fields if name in row.__table__.columns}
    return {**values, "config": ModelConfig.model_validate(row.config)}
