"""What every part of the contract shares: the strict base model, the papers and the reference types."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field


class Paper(NamedTuple):
    """The source of a method: its title and its arXiv number."""

    title: str
    arxiv: str


class Spec(BaseModel):
    """Base of all that a job may say: unknown keys are refused, values are not coerced, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


def _require_tag(schema: dict[str, Any]) -> None:
    """The tag has a default for use in Python; a document must name it."""
    tags = [tag for tag in ("kind", "architecture", "store") if tag in schema["properties"]]
    schema["required"] = [*tags, *schema.get("required", ())]


class Option(Spec):
    """One member of a tagged union, with the facts that the catalogue shows beside its JSON Schema."""

    model_config = ConfigDict(json_schema_extra=_require_tag)
    paper: ClassVar[Paper | None] = None


Reference = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""Names an input: an id of this service (`file_…`, `model_…`), or a path when the trainer runs on its own."""

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
