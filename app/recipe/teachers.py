"""The models to learn from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints

from app.recipe.base import Positive, Reference, Spec

TeacherName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Weighting = Literal["fixed", "entropy"]


class Teacher(Spec):
    """A model to learn from."""

    model: Reference
    """A model of this service (`model_…`), uploaded or made by an earlier job."""
    name: TeacherName = "teacher"
    """What a loss calls it; several teachers must have different names."""
    weight: Positive = 1.0
    """Its share in the losses that learn from all teachers, relative to the other teachers' weights."""
