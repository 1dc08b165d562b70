"""Layers of a library's network that a job has built as another kind."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints

from app.recipe.base import Spec
from app.recipe.students.layers import SingleTokenNorm

PathPattern = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]


class Replacement(Spec):
    """Layers by the pattern of their module paths, and the kind that they are built as."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_alias=True, validate_by_name=True)

    match: PathPattern
    """Pattern of module paths: `*` stands for any text, `?` for one character, `[01]` for one of several; so
    `*.LayerNorm` matches all layers of that name. It has to match normalisation layers, and nothing else."""
    layer: SingleTokenNorm = Field(alias="with")
    """The layer that takes their place. It starts with the stored weights of the same names and shapes; others are
    initialised, and the job's events name them."""

    def matches(self, path: str) -> bool:
        """Whether a module of this path is replaced."""
        return fnmatchcase(path, self.match)


Replacements = Annotated[list[Replacement], Field(max_length=16)]


def no_replacements() -> Any:
    """A field that is only serialised if it is not empty, for older workers and stored models."""
    return Field([], exclude_if=lambda value: not value)
