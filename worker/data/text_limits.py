"""Limits on untrusted rules for texts: reading a tokenizer, tokenizing, and rendering chats by a template."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

from worker.data.formats.columns import Talk
from worker.errors import unusable_model
from worker.limits import Subject, memory_limit, progress, reading

MAX_FILE_BYTES = 64 * 2**20
GROWTH = 32
"""Times its size that a tokenizer's file may take in memory."""
TEXT_GROWTH = 512
"""Bytes of memory that a character may take during tokenization: each token has offsets, masks and a text."""
CHAT_GROWTH = 64
"""Bytes of memory that a character of a chat may take: the chat is rendered as a whole, and again up to each answer."""
TRAINED = Subject("the tokenizer trained on data.train", "invalid_data", "data.train")
"""The tokenizer of a job without a stored one."""
Written = TypeVar("Written", covariant=True)
TEMPLATE = Subject("the chat template of data.tokenizer", "invalid_job", "data.tokenizer")


def tokenizer_subject(param: str) -> Subject:
    """The tokenizer of the model that this field names, for the limits on reading."""
    return Subject(f"the tokenizer of {param}", unusable_model("", param).code, param)


def tokenizer_memory(folder: Path) -> int:
    """Memory limit in bytes for reading the tokenizer in this folder."""
    files = (path for pattern in ("*.json", "*.txt", "*.jinja") for path in folder.glob(pattern))
    largest = max((path.stat().st_size for path in files), default=0)
    return memory_limit(min(largest, MAX_FILE_BYTES), GROWTH)


def reading_tokenizer(folder: Path, param: str) -> AbstractContextManager[None]:
    """Limits on reading the tokenizer in `folder`, of the model that the field `param` names."""
    return reading(tokenizer_subject(param), tokenizer_memory(folder))


def reading_texts(tokenizer: Subject, texts: Iterable[str]) -> AbstractContextManager[None]:
    """Limits on tokenizing these texts."""
    return reading(tokenizer, memory_limit(sum(map(len, texts)), TEXT_GROWTH))


def reading_template() -> AbstractContextManager[None]:
    """Limits on reading a chat template."""
    return reading(TEMPLATE)


class Writer(Protocol[Written]):
    """Renders the chat of a row as text."""

    def write(self, talk: Talk, row: int) -> Written: ...


def write_all(writer: Writer[Written], talks: list[Talk], first: int) -> list[Written]:
    """Chats from row `first` on, rendered by a template within the limits: of time for each, of memory for all."""
    characters = sum(len(message.content) + len(str(dict(message.more))) for talk in talks for message in talk)
    written = []
    with reading(TEMPLATE, memory_limit(characters, CHAT_GROWTH)):
        for row, talk in enumerate(talks, first):
            written.append(writer.write(talk, row))
            progress()
    return written
