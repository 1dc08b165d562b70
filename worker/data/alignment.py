"""The texts of packed sequences in the tokens of a teacher's own, and where both tokenizers have read the same.

Two tokens may be compared when all that both sides share of the texts is the same up to and including them: then both
models say what comes next behind the same characters. All of a text is shared, and of a chat, which each side writes by
its own template, what is said in it. Places are counted in shared characters, from the first text on; behind every
stretch of them lie two more, before and behind what ends it.

* Offsets are those of the tokenizer itself; post-processors, which some give offsets without spaces, are left out. A
  token that ends within a character (of byte pairs) ends nowhere: the character counts once it is whole.
* Only what decodes to the text that was given is compared, on both sides. A tokenizer that changes texts (small letters,
  other forms of the same characters) so loses the texts that it changes, and those alone.
* The teacher reads what the student reads in a sequence. Of a token that begins before the sequence and ends in it, the
  teacher reads all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Encoding
from torch import Tensor

from worker.data.archive import NDArray
from worker.data.chats import LEARNER, ChatWriter, Span
from worker.data.documents import end_of, within_spans
from worker.data.formats.columns import Chats, Talk, Texts
from worker.data.tokens import TextTokenizer
from worker.losses.base import IGNORED

BETWEEN = 2
"""Places behind a stretch of shared characters: what ends it is read, and what comes before the next one."""


class Stream(NamedTuple):
    """All texts in the tokens of one side, T of them."""

    ids: NDArray
    """(T,) int64."""
    counted: NDArray
    """(T,) bool: tokens to be predicted."""
    places: NDArray
    """(T,) int64: how far the texts are read with this token; it never falls."""
    exact: NDArray
    """(T,) bool: no character is in parts, and what is read is what was given."""


class Aligned(NamedTuple):
    """Of N sequences of L tokens, what a teacher reads in its own: W tokens of each."""

    tokens: Tensor
    """(N, W) int64."""
    targets: Tensor
    """(N, W) int64: what comes behind each token, IGNORED where that is not to be predicted."""
    rows: Tensor
    """(N, L) int64: for every token of the student's the place in the teacher's sequence; -1: there is none."""
    share: float
    """Of the student's tokens to be predicted, those that the teacher has something to say about."""


class Told(NamedTuple):
    """A text as one side is told it."""

    text: str
    shared: list[Span]
    """Stretches that both sides are told, in their order."""
    learned: list[Span] | None = None
    """What is to be predicted of a chat, whose special tokens are all in the text; none: a text, and all of it."""
    found: bool = True
    """Whether all that is to be predicted stands among what is shared."""


def tell(samples: Texts | Chats, reader: TextTokenizer, param: str) -> list[Told]:
    """All samples of the file that the field `param` names, for the side with this tokenizer. Raises UserError."""
    if isinstance(samples, Texts):
        return [Told(text, [(0, len(text))]) for text in samples.first]
    writer = ChatWriter(reader, param)
    return [_chat(talk, *writer.write(talk, row)) for row, talk in enumerate(samples.talks)]


def _chat(talk: Talk, text: str, answers: list[Span]) -> Told:
    """Templates may strip what is said, and so it is stripped here. What stands nowhere is taken for the text at its
    place: then nothing of the chat is compared, if it is an answer."""
    shared, found, cursor = list[Span](), True, 0
    following = iter([*answers, (len(text), len(text))])
    upcoming = next(following)
    for message in talk:
        words, learned = message.content.strip(), message.role == LEARNER
        start, end = upcoming if learned else (cursor, upcoming[0])
        place = text.find(words, start, end)
        found &= place >= 0 or not learned
        cursor = max(place, start)
        shared.append((cursor, cursor + len(words)))
        if learned:
            cursor, upcoming = end, next(following)
    return Told(text, shared, answers, found)


def align(
    ours: Sequence[Told], theirs: Sequence[Told], student: TextTokenizer, teacher: TextTokenizer, length: int
) -> Aligned:
    """What a teacher reads where the student reads texts as `pack` lays them out, in sequences of `length` tokens.

    Raises UserError (`invalid_job`) for a tokenizer without a token that ends a text.
    """
    return cut(*read_both(ours, theirs, student, teacher), length, end_of(teacher))


def read_both(
    ours: Sequence[Told], theirs: Sequence[Told], student: TextTokenizer, teacher: TextTokenizer
) -> tuple[Stream, Stream]:
    """All texts in the tokens of both sides, as they are packed."""
    parts: list[list[Stream]] = [[], []]
    base = 0
    for both in zip(_read(ours, student), _read(theirs, teacher), strict=True):
        comparable = all(one.unchanged for one in both)
        for side, one in zip(parts, both, strict=True):
            side.append(_placed(one, base, comparable))
        base += _characters(both[0].told)
    mine, others = (Stream(*map(np.concatenate, zip(*side, strict=True))) for side in parts)
    return mine, others


class _Read(NamedTuple):
    """One text in the tokens of one side."""

    told: Told
    encoding: Encoding
    begin: list[int]
    """What stands before it; nothing before a chat."""
    end: int
    unchanged: bool
    """Whether the tokens say what both sides are told."""


def _read(told: Sequence[Told], reader: TextTokenizer) -> Iterator[_Read]:
    begin, end = reader.begin, end_of(reader)
    for one, encoding in zip(told, reader.encode_whole([each.text for each in told]), strict=True):
        unchanged = one.found and all(_says(reader, encoding, one.text, span) for span in one.shared)
        yield _Read(one, encoding, begin if one.learned is None else [], end, unchanged)


def _says(reader: TextTokenizer, encoding: Encoding, text: str, span: Span) -> bool:
    """Whether the tokens of a stretch of the text decode to it."""
    start, end = span
    ids = [i for i, (first, last) in zip(encoding.ids, encoding.offsets, strict=True) if last > start and first < end]
    return text[start:end] in reader.text(ids)


def _characters(told: Told) -> int:
    """Places that a text takes."""
    return sum(end - start + BETWEEN for start, end in told.shared)


def _placed(read: _Read, base: int, comparable: bool) -> Stream:
    """A text whose first place is `base`. The token that ends it predicts the next text, where no other token begins
    one; behind a chat comes what a template writes."""
    told, begin = read.told, read.begin
    offsets = np.array(read.encoding.offsets, np.int64).reshape(-1, 2)
    reached = np.maximum.accumulate(offsets[:, 1])
    untouched = np.append(np.minimum.accumulate(offsets[::-1, 0])[::-1][1:], len(told.text))[: len(reached)]
    places, within = _count(reached, told.shared)
    last = told.learned is None and not begin
    places = np.concatenate(([0] * len(begin), places, [_characters(told) - (not last)]))
    exact = np.concatenate(([True] * len(begin), within & (reached <= untouched) & comparable, [last]))
    ids = np.array([*begin, *read.encoding.ids, read.end], np.int64)
    counted = np.arange(len(ids)) >= len(begin)
    if told.learned is not None:
        counted = np.append(within_spans(read.encoding, told.learned, len(told.text)), False)
    return Stream(ids, counted, base + places.astype(np.int64), exact.astype(bool))


def _count(reached: NDArray, shared: Sequence[Span]) -> tuple[NDArray, NDArray]:
    """Places of ends of tokens (T,), counted in characters of a text; and which of them lie within what is shared."""
    starts, ends = np.array(shared, np.int64).T
    lengths = ends - starts
    before = np.append(0, np.cumsum(lengths + BETWEEN))
    number = np.searchsorted(starts, reached, "right") - 1
    inside = number.clip(0)
    behind = np.minimum(reached - starts[inside], lengths[inside] + 1)
    return np.where(number < 0, 0, before[inside] + behind), (number >= 0) & (reached <= ends[inside])


def cut(student: Stream, teacher: Stream, length: int, fill: int) -> Aligned:
    """Both streams in sequences: the student's of `length` tokens, the teacher's of all that is read in them, the
    shorter ones filled up with `fill`."""
    asked, told = len(student.ids) - 1, len(teacher.ids) - 1
    count = max(1, -(-asked // length))
    inner = student.places[np.arange(1, count) * length - 1]
    edges = np.array([0, *np.searchsorted(teacher.places[:told], inner, "right"), told])
    sequence = np.repeat(np.arange(count), np.diff(edges))
    place = np.arange(told) - edges[sequence]
    shape = (count, max(1, int(np.diff(edges).max())))
    tokens, targets = np.full(shape, fill, np.int64), np.full(shape, IGNORED, np.int64)
    tokens[sequence, place] = teacher.ids[:-1]
    targets[sequence, place] = np.where(teacher.counted[1:], teacher.ids[1:], IGNORED)
    rows = np.full(count * length, -1, np.int64)
    mine, theirs = _same_places(student, teacher)
    together = sequence[theirs] == mine // length
    rows[mine[together]] = place[theirs[together]]
    share = (rows[:asked] >= 0)[student.counted[1:]].sum() / max(1, student.counted[1:].sum())
    made = (torch.from_numpy(each) for each in (tokens, targets, rows.reshape(count, length)))
    return Aligned(*made, share=float(share))


def _same_places(student: Stream, teacher: Stream) -> tuple[NDArray, NDArray]:
    """Numbers of tokens on both sides that end at the same place: the last ones that do, on each side."""
    (own, mine), (others, theirs) = (_last_at(side) for side in (student, teacher))
    _, at, there = np.intersect1d(own, others, assume_unique=True, return_indices=True)
    return mine[at], theirs[there]


def _last_at(side: Stream) -> tuple[NDArray, NDArray]:
    """Places that tokens end exactly at, rising, and the last token that does; the very last predicts nothing."""
    numbers = side.exact[:-1].nonzero()[0]
    places = side.places[:-1][numbers]
    final = np.append(np.diff(places) > 0, True)[: len(places)]
    return places[final], numbers[final]
