"""Requests that change or clone a job."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, field_validator

from app.recipe.base import Spec
from app.recipe.data.sources import AnyData
from app.recipe.job import EvaluationSpec, Labels, Name, Recipe, Resources
from app.recipe.students.architectures import Student
from app.recipe.teachers.teacher import Teacher, Weighting


class JobPatch(Spec):
    """Fields that may be changed while a job is queued."""

    priority: int = Field(ge=0, le=100)
    """Higher runs first within a queue."""


def _may_not_be_null(schema: dict[str, Any]) -> None:
    """None means omitted; a document must not have null."""
    for name in NEVER_NULL:
        field = schema["properties"][name]
        [option] = [option for option in field.pop("anyOf") if option.get("type") != "null"]
        del field["default"]
        schema["properties"][name] = {**option, **field}


NEVER_NULL = (
    "labels",
    "data",
    "teachers",
    "teacher_weighting",
    "student",
    "recipe",
    "evaluation",
    "resources",
    "priority",
)


class CloneOverrides(Spec):
    """Fields of the clone that differ from the original; a field is replaced as a whole."""

    model_config = ConfigDict(json_schema_extra=_may_not_be_null)

    name: Name | None = None
    """Name of the clone; null: none."""
    labels: Labels | None = None
    """Labels of the clone."""
    data: AnyData | None = None
    """Data for training and evaluation."""
    teacher: Teacher | None = None
    """The teacher; null: none."""
    teachers: list[Teacher] | None = Field(None, max_length=8)
    """Several teachers."""
    teacher_weighting: Weighting | None = None
    """Weighting of several teachers in a loss."""
    student: Student | None = None
    """The network that is trained."""
    recipe: Recipe | None = None
    """How the student is trained."""
    evaluation: EvaluationSpec | None = None
    """How the student is evaluated."""
    resources: Resources | None = None
    """Machines and time limit of the clone."""
    priority: int | None = Field(None, ge=0, le=100)
    """Higher runs first within a queue."""
    seed: int | None = Field(None, ge=0, le=2**63 - 1)
    """Null: a new one is drawn; omitted: the original's, so that the clone repeats it."""

    @field_validator(*NEVER_NULL, mode="before")
    @classmethod
    def _not_null(cls, value: object) -> object:
        if value is None:
            raise ValueError("can't be null; omit it to keep the original's")
        return value
