"""Bounds on a stranger's rules for texts: reading a tokenizer, making tokens, and writing chats by a template."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

from worker.data.formats.columns import Talk
from worker.errors import unusable_model
from worker.limits import Subject, progress, reading, room_for

MAX_FILE_BYTES = 64 * 2**20
GROWTH = 32
"""Times its size that a tokenizer's file may take in memory."""
TEXT_GROWTH = 512
"""Bytes of memory that a character may take while it becomes tokens: each has offsets, masks and a text of its own."""
CHAT_GROWTH = 64
"""Bytes of memory that a character of a chat may take: all of it is written, and up to each of its answers again."""
TRAINED = Subject("the tokenizer made of data.train", "invalid_data", "data.train")
"""What makes tokens where no tokenizer was stored."""
Written = TypeVar("Written", covariant=True)
TEMPLATE = Subject("the chat template of data.tokenizer", "invalid_job", "data.tokenizer")


def tokenizer_subject(param: str) -> Subject:
    """The tokenizer of the model that this field names, as what is read."""
    return Subject(f"the tokenizer of {param}", unusable_model("", param).code, param)


def tokenizer_room(folder: Path) -> int:
    """Bytes of memory that reading the tokenizer in this folder may take."""
    files = (path for pattern in ("*.json", "*.txt", "*.jinja") for path in folder.glob(pattern))
    largest = max((path.stat().st_size for path in files), default=0)
    return room_for(min(largest, MAX_FILE_BYTES), GROWTH)


def reading_tokenizer(folder: Path, param: str) -> AbstractContextManager[None]:
    """Bounds on reading the tokenizer in `folder`, of the model that the field `param` names."""
    return reading(tokenizer_subject(param), tokenizer_room(folder))


def reading_texts(tokenizer: Subject, texts: Iterable[str]) -> AbstractContextManager[None]:
    """Bounds on making tokens of these texts."""
    return reading(tokenizer, room_for(sum(map(len, texts)), TEXT_GROWTH))


def reading_template() -> AbstractContextManager[None]:
    """Bounds on reading a template of chats."""
    return reading(TEMPLATE)


class Writer(Protocol[Written]):
    """Writes a chat, which stands in this row, as text."""

    def write(self, talk: Talk, row: int) -> Written: ...


def write_all(writer: Writer[Written], talks: list[Talk], first: int) -> list[Written]:
    """Chats from row `first` on as a template writes them, each in its time and all of them within bounds."""
    characters = sum(len(message.content) + len(str(dict(message.more))) for talk in talks for message in talk)
    written = []
    with reading(TEMPLATE, room_for(characters, CHAT_GROWTH)):
        for row, talk in enumerate(talks, first):
            written.append(writer.write(talk, row))
            progress()
    return written
