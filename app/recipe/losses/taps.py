"""Places in a network whose activations a loss uses, named as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator
from pydantic.annotated_handlers import GetJsonSchemaHandler
from pydantic_core.core_schema import CoreSchema

from app.recipe.base import Spec

PATH = r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$"


class Tap(Spec):
    """Input or output of one module. A document may give only the path, which means the module's output."""

    path: str = Field(max_length=512, pattern=PATH)
    """The module within the network, as in `stages.1` or `bert.encoder.layer.3`."""
    at: Literal["output", "input"] = "output"
    """Side of the module: the input of a ReLU is the pre-activation. Of several tensors the first is used."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        whole = handler.resolve_ref_schema(handler(schema))
        return {"anyOf": [{"type": "string", "maxLength": 512, "pattern": PATH}, whole]}


class Pair(Spec):
    """A place in the teacher, and the place in the student that is trained to match it."""

    teacher: Tap
    """Place in the teacher."""
    student: Tap
    """Place in the student."""


class Taps(NamedTuple):
    """Activations that a loss uses on each side."""

    student: tuple[Tap, ...] = ()
    teacher: tuple[Tap, ...] = ()


def taps_of(pairs: Sequence[Pair]) -> Taps:
    """The taps of both sides of `pairs`."""
    return Taps(tuple(pair.student for pair in pairs), tuple(pair.teacher for pair in pairs))
