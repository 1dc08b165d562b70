"""Chat templates, rendered as the Transformers library renders them: with its tags, filters and names.

A template is an untrusted Jinja program: it runs in that library's sandbox, without access to anything but its
arguments, in a process without credentials. Two differences are intended: the date is an argument, so that a resumed
job renders the same; and a `generation` block whose position in the text can't be determined is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

Span = tuple[int, int]
"""First character, and the end (exclusive)."""
_MARKED = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys of messages for the reasoning before an answer."""


class ChatTemplate:
    """A compiled template, whose current time is midnight of `day`. Raises `jinja2.TemplateError` if it is invalid."""

    def __init__(self, source: str, day: date) -> None:
        self.marks = _MARKED.search(source) is not None
        """Whether the template marks the text to be learned, by `generation` blocks."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = datetime.combine(day, time()).strftime
        self._blocks: _Generation = environment.extensions[_Generation.identifier]  # type: ignore[assignment]
        self._template = environment.from_string(source)

    def render(
        self, messages: Iterable[Mapping[str, Any]], roles: Mapping[str, str], *, prompts: bool = False
    ) -> tuple[str, list[Span]]:
        """A chat's text, and the spans of its `generation` blocks; with `prompts` it ends in the prompt for an answer.

        `roles` are special tokens by their roles. Raises TemplateError, and any error of a template's expressions.
        """
        variables = {"messages": [_plain(message) for message in messages], "tools": None, "documents": None}
        parts: list[str] = []
        self._blocks.begin()
        for part in self._template.generate(**variables, add_generation_prompt=prompts, **roles):
            parts.append(part)
            self._blocks.position += len(part)
        text = "".join(parts)
        if any(text[start : start + len(block)] != block for start, block in self._blocks.found):
            raise TemplateError("it stores the text of a generation block, and writes it elsewhere")
        return text, [(start, start + len(block)) for start, block in self._blocks.found]


class _Generation(Extension):
    """The tag `generation`, around the text of a chat that a model is to learn; it does not change the text."""

    tags = {"generation"}  # as the base class declares it

    def begin(self) -> None:
        """Clear the blocks of the previous text."""
        self.position, self.found = 0, list[tuple[int, str]]()

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

    def _note(self, caller: Macro) -> str:
        text: str = caller()
        self.found.append((self.position, text))
        return text


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message in the form for templates: without null values, and with its reasoning under all usual keys."""
    values = {key: value for key, value in message.items() if value is not None}
    reasoning = next((values[key] for key in _REASONING if key in values), None)
    return values if reasoning is None else {"thinking": reasoning, **values, "reasoning_content": reasoning}


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: Any) -> NoReturn:
    raise TemplateError(str(message))
