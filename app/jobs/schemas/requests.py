"""Requests that change a job or make one of another."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, field_validator

from app.recipe.base import Spec
from app.recipe.data.sources import AnyData
from app.recipe.job import EvaluationSpec, Labels, Name, Recipe, Resources
from app.recipe.students.architectures import Student
from app.recipe.teachers.teacher import Teacher, Weighting


class JobPatch(Spec):
    """What may be changed while a job is queued."""

    priority: int = Field(ge=0, le=100)
    """Higher runs first within a queue."""


def _may_not_be_null(schema: dict[str, Any]) -> None:
    """None stands for what was left out; a document may not say null."""
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
    """What is trained and evaluated on."""
    teacher: Teacher | None = None
    """The model to learn from; null: none."""
    teachers: list[Teacher] | None = Field(None, max_length=8)
    """Several models to learn from."""
    teacher_weighting: Weighting | None = None
    """How several teachers share a loss."""
    student: Student | None = None
    """The network that learns."""
    recipe: Recipe | None = None
    """How the student is trained."""
    evaluation: EvaluationSpec | None = None
    """How the student is judged."""
    resources: Resources | None = None
    """Where the clone may run, and how long."""
    priority: int | None = Field(None, ge=0, le=100)
    """Higher runs first within a queue."""
    seed: int | None = Field(None, ge=0, le=2**63 - 1)
    """None: a new one is drawn; left out: the original's, so that the clone repeats it."""

    @field_validator(*NEVER_NULL, mode="before")
    @classmethod
    def _not_null(cls, value: object) -> object:
        if value is None:
            raise ValueError("can't be null; leave it out to keep the original's")
        return value
