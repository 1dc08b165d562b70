"""Chats rendered as one text each by a tokenizer's template, with the spans of the answers."""

from __future__ import annotations

from datetime import UTC, date, datetime

from jinja2 import TemplateError

from worker.data.chat_templates import ChatTemplate, Span
from worker.data.formats.columns import Talk
from worker.data.formats.faults import invalid
from worker.data.tokens import TextTokenizer
from worker.errors import UserError

LEARNER = "assistant"
"""The role whose messages are learned."""


class ChatWriter:
    """Renders the chats of the file that `param` names, with `day` as the date; none: today. Raises UserError
    (`invalid_job`) without a template."""

    def __init__(self, reader: TextTokenizer, param: str, day: date | None = None) -> None:
        if reader.template is None:
            found = (
                f"{param} has chats, and the tokenizer has no chat template; accepted: texts, or a tokenizer with one"
            )
            raise UserError("invalid_job", found, "data.tokenizer")
        self._param, self._roles = param, reader.named
        self._template = _compiled(reader.template, day or datetime.now(UTC).date())

    @property
    def marks(self) -> bool:
        """Whether the template marks the text to be learned; tokens with any character in it count."""
        return self._template.marks

    def write(self, talk: Talk, row: int) -> tuple[str, list[Span]]:
        """The chat's text, and the spans to learn: those that the template marks by `generation`, else the assistant's
        messages with their end tokens.

        Raises UserError (`invalid_data`) naming the row if the template rejects the chat, or renders a message
        differently once others follow, so that the span of an answer can't be determined.
        """
        whole, marked = self._render(talk, row)
        if self.marks:
            return whole, marked
        turns = [index for index, message in enumerate(talk) if message.role == LEARNER]
        return whole, [self._span(talk, index, whole, row) for index in turns]

    def _span(self, talk: Talk, index: int, whole: str, row: int) -> Span:
        before, _ = self._render(talk[:index], row, prompts=True) if index else ("", [])
        through, _ = self._render(talk[: index + 1], row)
        if not (through.startswith(before) and whole.startswith(through)):
            found = f"row {row} of {self._param}: the chat template renders message {index} differently in the middle"
            raise invalid(f"{found} of a chat; accepted: chats that end with their only answer", self._param)
        return len(before), len(through)

    def _render(self, talk: Talk, row: int, *, prompts: bool = False) -> tuple[str, list[Span]]:
        messages = [{"role": message.role, "content": message.content, **message.more} for message in talk]
        try:
            return self._template.render(messages, self._roles, prompts=prompts)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            reason = str(error)[:200]
            raise invalid(f"row {row} of {self._param}: the chat template refuses it: {reason}", self._param) from error


def _compiled(source: str, day: date) -> ChatTemplate:
    try:
        return ChatTemplate(source, day)
    except TemplateError as error:
        found = f"data.tokenizer: its chat template can't be read: {str(error)[:200]}"
        raise UserError("invalid_job", found, "data.tokenizer") from error
