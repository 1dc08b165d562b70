"""Converts pydantic's errors: the path as the client wrote it, and what would be accepted there.

The accepted values are read from the JSON Schema, so that they can't differ from the documentation.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from app.core.errors import MAX_ERRORS, FieldError, shortened
from app.recipe.problem import Problem

Schema = Mapping[str, Any]
Location = Sequence[int | str]
MAX_HINTS = 5
"""Errors of one response for which the nearest known name is searched, which is their largest cost."""
MAX_HINT_CHARACTERS = 64
MAX_ECHO_CHARACTERS = 64
"""Characters of an invalid value that its error quotes."""


@cache
def _schema_of(model: type[BaseModel]) -> Schema:
    return model.model_json_schema()


def of_validation(error: ValidationError, model: type[BaseModel]) -> list[FieldError]:
    """The first invalid fields, at most `MAX_ERRORS`, of a document that was validated as `model`."""
    schema = _schema_of(model)
    details = error.errors(include_url=False)[:MAX_ERRORS]
    return [
        describe(detail, detail["loc"], schema, schema, hint=number < MAX_HINTS)
        for number, detail in enumerate(details)
    ]


def of_problems(problems: Iterable[Problem]) -> list[FieldError]:
    """Problems across fields, as `FieldError`s."""
    return [FieldError(param=problem.param, message=problem.message, accepted=problem.accepted) for problem in problems]


def describe(
    detail: Mapping[str, Any], location: Location, schema: Schema, root: Schema, *, hint: bool = True
) -> FieldError:
    """Convert one of pydantic's error details to a `FieldError`.

    `location` is the path below `schema`; `root` is the document in which `schema`'s references are resolved. With
    `hint`, an unknown name is compared with the known ones.
    """
    walk = _Walk(root, schema)
    for segment in location:
        walk.enter(segment)
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(walk, hint)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _unknown_tag(walk, context, hint)
    if kind == "missing":
        return FieldError(param=walk.path, message="is required", accepted=_accepted(walk.node, root))
    if kind in ("value_error", "assertion_error"):
        return FieldError(param=walk.path, message=str(context["error"]), accepted=_accepted_value(walk.node, root))
    return FieldError(param=walk.path, message=_sentence(kind, detail["msg"]), accepted=_accepted(walk.node, root))


def _sentence(kind: str, message: str) -> str:
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "input should be an object"
    return message[:1].lower() + message[1:].replace(" after validation", "")


def _unknown_key(walk: _Walk, hint: bool) -> FieldError:
    known = sorted(walk.parent.get("properties", ()))
    message = f"is not a known key{_hint(walk.last, known) if hint else ''}"
    return FieldError(param=walk.path, message=message, accepted=_one_of(known))


def _unknown_tag(walk: _Walk, context: Mapping[str, Any], hint: bool) -> FieldError:
    discriminator = context["discriminator"].strip("'")
    tags = sorted(_resolve(walk.node, walk.root)["discriminator"]["mapping"])
    given = context.get("tag")
    near = _hint(given, tags) if hint and given is not None else ""
    message = "is required" if given is None else f"{shortened(given, MAX_ECHO_CHARACTERS)!r} is not known{near}"
    param = f"{walk.path}.{discriminator}" if walk.path else discriminator
    return FieldError(param=param, message=message, accepted=_one_of(tags))


def _hint(given: str, known: Iterable[str]) -> str:
    if len(given) > MAX_HINT_CHARACTERS:
        return ""
    near = difflib.get_close_matches(given, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


class _Walk:
    """Follows an error's location through the schema and writes it as a path in the client's document.

    The location also has the chosen member of a union (its tag, or the title of its schema), and marks
    errors of a mapping's keys: neither is part of the client's document.
    """

    def __init__(self, root: Schema, node: Schema) -> None:
        self.root = root
        self.node = self.parent = _resolve(node, root)
        self.path = self.last = ""

    def enter(self, segment: int | str) -> None:
        mapping = self.node.get("discriminator", {}).get("mapping", {})
        if segment in mapping:
            self.node = _resolve({"$ref": mapping[segment]}, self.root)
        elif (option := _titled(self.node, segment, self.root)) is not None:
            self.node = option
        elif segment == "[key]":
            self.node = {"type": "string", "pattern": next(iter(self.parent.get("patternProperties", ())), ".*")}
        else:
            self._descend(segment)

    def _descend(self, segment: int | str) -> None:
        self.parent, self.last = self.node, str(segment)
        if isinstance(segment, int):
            self.path += f"[{segment}]"
        else:
            self.path += f".{segment}" if self.path else segment
        self.node = _resolve(_child(self.node, segment), self.root)


_PLAIN = {"float": "number", "int": "integer", "list": "array", "str": "string"}
"""JSON Schema's name of a type that pydantic names in an error's location."""


def _titled(node: Schema, title: int | str, root: Schema) -> Schema | None:
    """The alternative of a union that has this title, or the plain type that pydantic names so."""
    options = [_resolve(option, root) for option in (*node.get("oneOf", ()), *node.get("anyOf", ()))]
    plain = _PLAIN.get(str(title).removeprefix("constrained-").partition("[")[0])
    return next((option for option in options if title == option.get("title") or plain == option.get("type", "")), None)


def _child(node: Schema, segment: int | str) -> Schema:
    if isinstance(segment, str):
        values = next(iter(node.get("patternProperties", {}).values()), node.get("additionalProperties"))
        child = node.get("properties", {}).get(segment, values)
    elif segment < len(node.get("prefixItems", ())):
        child = node["prefixItems"][segment]
    else:
        child = node.get("items")
    return child if isinstance(child, Mapping) else {}


def _resolve(node: Schema, root: Schema) -> Schema:
    """Follow references, and the one alternative that is not null; keys beside them are kept."""
    while True:
        if "$ref" in node:
            target = root
            for part in node["$ref"].removeprefix("#/").split("/"):
                target = target[part]
            node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
        elif len(inner := _not_null(node)) == 1:
            node = {**inner[0], "nullable": True}
        else:
            return node


def _not_null(node: Schema) -> list[Schema]:
    return [option for option in node.get("anyOf", ()) if option.get("type") != "null"]


def _accepted_value(node: Schema, root: Schema) -> str | None:
    """As `_accepted`, but none for objects: there the message of the check itself is more specific."""
    return None if node.get("type") == "object" or "discriminator" in node else _accepted(node, root)


def _accepted(node: Schema, root: Schema) -> str | None:
    """Accepted values of a schema, in words; none if there is nothing to add."""
    text = _plain(_resolve(node, root), root)
    return f"{text}, or null" if text and node.get("nullable") else text


def _plain(node: Schema, root: Schema) -> str | None:
    if "enum" in node or "const" in node:
        return _one_of(node.get("enum", [node.get("const")]))
    if "discriminator" in node:
        return f"an object with {node['discriminator']['propertyName']} " + _one_of(node["discriminator"]["mapping"])
    if options := [*node.get("anyOf", ()), *node.get("oneOf", ())]:
        return " or ".join(text for option in options if (text := _accepted(option, root))) or None
    words = _WORDS.get(node.get("type", ""))
    return words(node, root) if words else None


def _one_of(values: Iterable[Any]) -> str:
    names = [str(value) for value in values]
    return ("one of " if len(names) > 1 else "") + ", ".join(names)


def _number(node: Schema, _: Schema) -> str:
    noun, spell = ("an integer", int) if node["type"] == "integer" else ("a number", float)
    bounds = [f"{sign} {spell(node[key])}" for key, sign in _BOUNDS.items() if key in node]
    return " ".join([noun, ", ".join(bounds)]).rstrip()


def _string(node: Schema, _: Schema) -> str:
    text = "a string" + _count(node.get("minLength"), node.get("maxLength"), "characters")
    return f"{text} matching {node['pattern']}" if "pattern" in node else text


def _array(node: Schema, root: Schema) -> str:
    items = _accepted(node["items"], root) if node.get("items") else None
    text = "a list" + _count(node.get("minItems"), node.get("maxItems"), "items")
    return f"{text}, each {items}" if items else text


def _object(node: Schema, _: Schema) -> str:
    if "properties" in node:
        return "an object with the keys " + ", ".join(node["properties"])
    return "an object" + _count(None, node.get("maxProperties"), "keys")


def _count(low: int | None, high: int | None, noun: str) -> str:
    if low is not None and high is not None:
        return f" of {low} {noun}" if low == high else f" of {low} to {high} {noun}"
    if low is not None:
        return f" of at least {low} {noun}"
    return f" of at most {high} {noun}" if high is not None else ""


_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_WORDS: dict[str, Callable[[Schema, Schema], str]] = {
    "integer": _number,
    "number": _number,
    "string": _string,
    "array": _array,
    "object": _object,
    "boolean": lambda node, root: "true or false",
}
