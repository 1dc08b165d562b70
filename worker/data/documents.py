"""Texts and chats as token ids, with the tokens that are to be predicted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding

from worker.data.archive import NDArray
from worker.data.chat_templates import Span
from worker.data.chats import ChatWriter
from worker.data.formats.columns import Chats, Talk, TextSamples
from worker.data.text_limits import reading_template, write_all
from worker.data.tokens import TextTokenizer
from worker.errors import UserError


class Document(NamedTuple):
    """One text, with the token that ends it."""

    ids: NDArray
    """(T,) int64."""
    counted: NDArray
    """(T,) bool: tokens to be predicted."""
    bytes: int = 0
    """Bytes, in UTF-8, of the text of these tokens."""


def read_documents(
    pieces: Iterable[TextSamples | Chats], reader: TextTokenizer, param: str, day: date | None = None
) -> Iterator[Document]:
    """All samples of the file that the field `param` names, in their order; templates get `day` as the date. Raises
    UserError (`invalid_data`, `invalid_job`)."""
    row, writer = 0, None
    for piece in pieces:
        if isinstance(piece, TextSamples):
            yield from _of_texts(piece.first, reader)
        else:
            with reading_template():
                writer = writer or ChatWriter(reader, param, day)
            yield from _of_chats(piece.talks, reader, writer, row)
            row += len(piece.talks)


def end_of(reader: TextTokenizer) -> int:
    """Id of the token that ends a text. Raises UserError (`invalid_job`) if the tokenizer has none."""
    if reader.end is None:
        raise UserError("invalid_job", "data.tokenizer: it has no token that ends a text", "data.tokenizer")
    return reader.end


def _of_texts(texts: list[str], reader: TextTokenizer) -> Iterator[Document]:
    """The end token is predicted; the tokenizer's begin tokens are not."""
    end, begin = end_of(reader), reader.begin
    for text, encoding in zip(texts, reader.encode_whole(texts), strict=True):
        ids = np.array([*begin, *encoding.ids, end], np.int64)
        yield Document(ids, np.arange(len(ids)) >= len(begin), len(text.encode()))


def _of_chats(talks: list[Talk], reader: TextTokenizer, writer: ChatWriter, first: int) -> Iterator[Document]:
    """The template writes all special tokens, also those that end an answer; a final end token is added, which is not
    predicted. The chats are those from row `first` on."""
    end = end_of(reader)
    written = write_all(writer, talks, first)
    encodings = reader.encode_whole([text for text, _ in written])
    for encoding, (text, spans) in zip(encodings, written, strict=True):
        ids = np.array([*encoding.ids, end], np.int64)
        answers = sum(len(text[start:stop].encode()) for start, stop in spans)
        counted = within_spans(encoding, spans, len(text), touched=writer.marks)
        yield Document(ids, np.append(counted, False), answers)


def within_spans(encoding: Encoding, spans: list[Span], length: int, *, touched: bool = False) -> NDArray:
    """Mask (T,) bool of the tokens that begin in one of the `spans` of a text of `length` characters; with `touched`,
    of those with any character there, as in the Transformers library."""
    marks = np.zeros(length + 1, np.int64)
    for start, end in spans:
        marks[start:end] = 1
    if not encoding.offsets:
        return np.zeros(0, bool)
    begins, ends = np.array(encoding.offsets).T
    before = np.concatenate([[0], marks.cumsum()])
    found: NDArray = before[ends] > before[begins] if touched else marks[begins] > 0
    return found
