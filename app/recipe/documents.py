"""Job documents as text: a YAML parser with JSON's numbers, and `key.path=value` overrides.

PyYAML follows YAML 1.1, where `1e-3` is a string, `no` is false, `010` is eight and `1:30` is ninety. This parser uses
the numbers and keywords of JSON instead, and refuses duplicate keys and aliases.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml


class DocumentError(ValueError):
    """The text is no job document; the message has the reason and the location."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a document that contains itself has no JSON
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", self.get_mark())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key.value, str) or key.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"^(?:null|~|)$", ["n", "~", ""]),
    ("bool", r"^(?:true|false)$", ["t", "f"]),
    ("int", r"^-?(?:0|[1-9][0-9]*)$", list("-0123456789")),
    ("float", r"^[-+]?(?:[0-9]+\.[0-9]*|\.?[0-9]+(?=[eE])|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


_INDEX = re.compile(r"\[([0-9]+)\]")


def parse(text: str) -> dict[str, Any]:
    """Read a YAML (or JSON) document whose top level is a mapping. Raises `DocumentError`."""
    document = _load(text)
    if not isinstance(document, dict):
        raise DocumentError(f"a job is a mapping of fields, not {type(document).__name__}")
    return document


def override(document: dict[str, Any], assignment: str) -> dict[str, Any]:
    """Return the document with one value replaced: `recipe.optimizer.lr=1e-3`, `recipe.losses[0].weight=2`.

    The path has the form of paths in error messages. The value is parsed as YAML. Missing mappings on the path are
    created; an item of a list is selected by an existing index. Raises `DocumentError`.
    """
    path, equals, text = assignment.partition("=")
    keys = _INDEX.sub(r".\1", path).split(".")
    if not equals or not all(keys):
        raise DocumentError(f"{assignment!r} is not of the form key.path=value")
    replaced = _replace(document, keys, _load(text), path)
    assert isinstance(replaced, dict)
    return replaced


def _replace(node: Any, keys: list[str], value: Any, path: str) -> Any:
    if not keys:
        return value
    key, *rest = keys
    if isinstance(node, list):
        if not key.isdecimal() or int(key) >= len(node):
            raise DocumentError(f"{path}: {key!r} is not an index of a list with {len(node)} items")
        index = int(key)
        return [*node[:index], _replace(node[index], rest, value, path), *node[index + 1 :]]
    if node is None or isinstance(node, dict):
        inner = node or {}
        return {**inner, key: _replace(inner.get(key), rest, value, path)}
    raise DocumentError(f"{path}: {key!r} lies under a plain value")


def _load(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - the loader above is a SafeLoader
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise DocumentError(f"not YAML: {where}{error.problem}") from None
    except yaml.YAMLError as error:
        raise DocumentError(f"not YAML: {error}") from None
