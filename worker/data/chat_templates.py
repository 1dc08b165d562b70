"""Chat templates, rendered as the Transformers library renders them: with its tags, its filters and its names.

A template is a stranger's program in Jinja: it runs in that library's sandbox, which reaches nothing but what it is
given, in a process that holds no credentials. Two things differ on purpose: the day is given, so that a job renders
the same whenever it goes on; and a `generation` block whose place in the text can't be told is refused.
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
"""First character, and the one behind the last."""
_MARKED = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys under which messages hold what was thought before an answer."""


class ChatTemplate:
    """A compiled template, told the time as midnight of `day`. Raises `jinja2.TemplateError` where it can't be read."""

    def __init__(self, source: str, day: date) -> None:
        self.marks = _MARKED.search(source) is not None
        """Whether the template itself says, by `generation` blocks, what is to be learned."""
        around = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        around.filters["tojson"] = _to_json
        around.globals["raise_exception"] = _refuse
        around.globals["strftime_now"] = datetime.combine(day, time()).strftime
        self._blocks: _Generation = around.extensions[_Generation.identifier]  # type: ignore[assignment]
        self._template = around.from_string(source)

    def render(
        self, messages: Iterable[Mapping[str, Any]], roles: Mapping[str, str], *, asks: bool = False
    ) -> tuple[str, list[Span]]:
        """A chat's text, and the spans of its `generation` blocks; with `asks` an answer is asked for at its end.

        `roles` are special tokens by their roles. Raises TemplateError, or what a template's expressions raise.
        """
        told = {"messages": [_plain(message) for message in messages], "tools": None, "documents": None}
        parts: list[str] = []
        self._blocks.begin()
        for part in self._template.generate(**told, add_generation_prompt=asks, **roles):
            parts.append(part)
            self._blocks.position += len(part)
        text = "".join(parts)
        if any(text[start : start + len(block)] != block for start, block in self._blocks.found):
            raise TemplateError("it keeps what it writes in a generation block, and writes it elsewhere")
        return text, [(start, start + len(block)) for start, block in self._blocks.found]


class _Generation(Extension):
    """The tag `generation`, around what a model is to learn of a chat; it leaves the text as it is."""

    tags = {"generation"}  # as the base class declares it

    def begin(self) -> None:
        """Forget the blocks of the text before."""
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
    """A message as templates are given it: without what it leaves open, and its reasoning under all usual names."""
    told = {key: value for key, value in message.items() if value is not None}
    reasoning = next((told[key] for key in _REASONING if key in told), None)
    return told if reasoning is None else {"thinking": reasoning, **told, "reasoning_content": reasoning}


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
