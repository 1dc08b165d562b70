"""Base of the contract: the strict base model, papers and reference types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema


class Paper(NamedTuple):
    """The source of a method: its title and its arXiv number."""

    title: str
    arxiv: str


_AS_TEXT = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+|[-+]?[0-9]+(?:_[0-9]+)+")
"""Numbers that common YAML parsers return as text: `5e-4` (YAML 1.1 requires a point and a sign) and `1_000`."""


class Spec(BaseModel):
    """Base of all parts of a job: unknown keys are refused, values are not coerced, instances are immutable.

    Only text such as "5e-4" is converted to a number in a field of numbers without text, so that a job file means the
    same with any YAML parser.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _read_numbers(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        read = {name: _number(value[name], whole) for name, whole in _numeric(cls).items() if name in value}
        return {**value, **read} if any(read[name] is not value[name] for name in read) else value


@cache
def _numeric(spec: type[BaseModel]) -> dict[str, bool]:
    """Fields that accept numbers and no text, and whether these are whole."""
    found = {name: set(_types(field.annotation)) for name, field in spec.model_fields.items()}
    return {name: float not in types for name, types in found.items() if types & {int, float} and str not in types}


def _types(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        return
    yield annotation
    for inner in get_args(annotation):
        yield from _types(inner)


def _number(value: Any, whole: bool) -> Any:
    """The number that a text represents; any other value unchanged."""
    if isinstance(value, list):
        read = [_number(item, whole) for item in value]
        return read if any(new is not old for new, old in zip(read, value, strict=True)) else value
    if not isinstance(value, str) or not _AS_TEXT.fullmatch(value):
        return value
    number = float(value)
    return int(number) if whole and number.is_integer() else number


def _require_tag(schema: dict[str, Any]) -> None:
    """The tag has a default for use in Python; a document must name it."""
    tags = [tag for tag in ("kind", "architecture", "store") if tag in schema["properties"]]
    schema["required"] = [*tags, *schema.get("required", ())]


class Option(Spec):
    """One member of a tagged union, with the facts that the catalogue shows with its JSON Schema."""

    model_config = ConfigDict(json_schema_extra=_require_tag)
    paper: ClassVar[Paper | None] = None


class OneOf:
    """Annotates the base class of options: a tagged union of the kinds of a registry, with the tag `kind`.

    `Field(discriminator="kind")` does the same for unions that are written out, of two kinds or more.
    """

    def __init__(self, kinds: tuple[type[Option], ...]) -> None:
        self._kinds = kinds

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {kind.model_fields["kind"].default: handler.generate_schema(kind) for kind in self._kinds}
        return core_schema.tagged_union_schema(choices, discriminator="kind")


Answer = Literal["classes", "labels", "numbers", "vectors", "anomalies", "tokens"]
"""Kinds of output of a task: one of several `classes`, any number of them at once (`labels`), `numbers`, `vectors` to
be compared with each other, how far an image and its parts are `anomalies`, or the next of the `tokens` of a text."""
EVERY_ANSWER: frozenset[Answer] = frozenset(get_args(Answer))
InputKind = Literal["images", "table", "texts"]
"""Kinds of samples of a model."""


class TaskOption(Option):
    """An option that is not for every task."""

    answers: ClassVar[frozenset[Answer]]
    """Kinds of output that it supports."""
    reads: ClassVar[tuple[InputKind, ...]] = ("images", "table", "texts")
    """Kinds of input that it supports."""
    of_samples: ClassVar[bool] = False
    """Whether it needs a single row of outputs for each sample."""
    without_labels: ClassVar[bool] = False
    """Whether it is only for tasks that learn from samples without labels."""


Reference = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""Names an input: an id of this service (`file_…`, `model_…`), or a path if the trainer runs without the service."""

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
