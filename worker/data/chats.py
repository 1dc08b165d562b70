"""Chats as one text each, by the template of a tokenizer, and where in it the answers stand.

A template is a stranger's program in Jinja: it runs in that library's sandbox, which reaches nothing but what it is
given, in a process that holds no credentials.
"""

from __future__ import annotations

from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from worker.data.formats.columns import Talk
from worker.data.formats.faults import invalid
from worker.data.tokens import TextTokenizer
from worker.errors import UserError

LEARNER = "assistant"
"""The role whose words are learned."""
Span = tuple[int, int]
"""First character, and the one behind the last."""


class ChatWriter:
    """Writes the chats of the file that `param` names. Raises UserError (`invalid_job`) without a template."""

    def __init__(self, reader: TextTokenizer, param: str) -> None:
        if reader.template is None:
            found = f"{param} holds chats, and the tokenizer has no chat template; accepted: texts, or one that has"
            raise UserError("invalid_job", found, "data.tokenizer")
        self._param, self._template = param, _compiled(reader.template)
        ends = reader.text([] if reader.end is None else [reader.end])
        self._names = {"bos_token": reader.text(reader.begin), "eos_token": ends}

    def write(self, talk: Talk, row: int) -> tuple[str, list[Span]]:
        """The chat's text, and the spans of what the assistant says, each with the marks that end it.

        Raises UserError (`invalid_data`) naming the row where the template refuses the chat, or writes a turn in
        another way once others follow, so that nobody can tell what an answer is.
        """
        whole = self._text(talk, row)
        turns = [index for index, message in enumerate(talk) if message.role == LEARNER]
        return whole, [self._span(talk, index, whole, row) for index in turns]

    def _span(self, talk: Talk, index: int, whole: str, row: int) -> Span:
        before = self._text(talk[:index], row, asks=True) if index else ""
        through = self._text(talk[: index + 1], row)
        if not (through.startswith(before) and whole.startswith(through)):
            found = f"row {row} of {self._param}: the chat template writes message {index} in another way in the middle"
            raise invalid(f"{found} of a chat; accepted: chats that end with their only answer", self._param)
        return len(before), len(through)

    def _text(self, talk: Talk, row: int, *, asks: bool = False) -> str:
        messages = [message._asdict() for message in talk]
        try:
            return self._template.render(messages=messages, add_generation_prompt=asks, **self._names)
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            told = str(error)[:200]
            raise invalid(f"row {row} of {self._param}: the chat template refuses it: {told}", self._param) from error


def _compiled(source: str) -> Template:
    """With what templates of the Transformers library expect to find."""
    around = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    around.globals["raise_exception"] = _refuse
    try:
        return around.from_string(source)
    except TemplateError as error:
        found = f"data.tokenizer: its chat template can't be read: {str(error)[:200]}"
        raise UserError("invalid_job", found, "data.tokenizer") from error


def _refuse(message: Any) -> NoReturn:
    raise TemplateError(str(message))
