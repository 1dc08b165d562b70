"""The texts of packed sequences in the tokens of a teacher's own, and where both tokenizers have read the same.

Two tokens may be compared when all texts before and the text up to and including them are the same on both sides: then
both models say what comes next behind the same characters. Places in the texts are counted in characters, from the first
text on; between two texts lie two places, one before the token that ends a text and one behind it.

* Offsets are those of the tokenizer itself; post-processors, which some give offsets without spaces, are left out. A
  token that ends within a character (of byte pairs) ends nowhere: the character counts once it is whole.
* Only what decodes to the text that was given is compared, on both sides. A tokenizer that changes texts (small letters,
  other forms of the same characters) so loses the texts that it changes, and those alone.
* The teacher reads what the student reads in a sequence. Of a token that begins before the sequence and ends in it, the
  teacher reads all. What its context has no room for is not compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worker.data.archive import NDArray
from worker.data.documents import end_of
from worker.data.tokens import ROUND, TextTokenizer
from worker.losses.base import IGNORED

BETWEEN = 2
"""Places that the end of a text takes."""


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
    whole: bool
    """Whether the teacher's context had room for all of its tokens."""


class _Read(NamedTuple):
    """One text in the tokens of one side, without those around it."""

    ids: list[int]
    starts: NDArray
    ends: NDArray
    """(T,) int64: characters that each token begins at and ends before."""
    unchanged: bool
    """Whether the tokens say the text that was given."""


class _Around(NamedTuple):
    """What one side puts around a text."""

    begin: list[int]
    end: int


def align(texts: Sequence[str], student: TextTokenizer, teacher: TextTokenizer, length: int, most: int) -> Aligned:
    """What a teacher that reads `most` tokens at a time reads where the student reads texts as `pack` lays them out.

    Raises UserError (`invalid_job`) for a tokenizer without a token that ends a text.
    """
    return cut(*read_both(texts, student, teacher), length, most, end_of(teacher))


def read_both(texts: Sequence[str], student: TextTokenizer, teacher: TextTokenizer) -> tuple[Stream, Stream]:
    """All texts in the tokens of both sides, as they are packed."""
    around = [_Around(reader.begin, end_of(reader)) for reader in (student, teacher)]
    parts: list[list[Stream]] = [[], []]
    base = 0
    for text, *both in zip(texts, _read(texts, student), _read(texts, teacher), strict=True):
        comparable = all(one.unchanged for one in both)
        for side, one, marks in zip(parts, both, around, strict=True):
            side.append(_placed(one, marks, base, len(text), comparable))
        base += len(text) + BETWEEN
    ours, theirs = (Stream(*map(np.concatenate, zip(*side, strict=True))) for side in parts)
    return ours, theirs


def _read(texts: Sequence[str], reader: TextTokenizer) -> Iterator[_Read]:
    for text, encoding in zip(texts, reader.encode_whole(list(texts)), strict=True):
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        yield _Read(encoding.ids, offsets[:, 0], offsets[:, 1], reader.text(encoding.ids) == text)


def _placed(read: _Read, around: _Around, base: int, length: int, comparable: bool) -> Stream:
    """A text of so many characters, whose first place is `base`. The token that ends it predicts the next text, where
    no other token begins one."""
    begin = around.begin
    ids = np.array([*begin, *read.ids, around.end], np.int64)
    reached = np.maximum.accumulate(read.ends)
    untouched = np.append(np.minimum.accumulate(read.starts[::-1])[::-1][1:], length)[: len(reached)]
    behind = length + (1 if begin else BETWEEN)
    places = np.concatenate((np.zeros(len(begin), np.int64), reached, [behind]))
    exact = np.concatenate(([True] * len(begin), (reached <= untouched) & comparable, [not begin])).astype(bool)
    return Stream(ids, np.arange(len(ids)) >= len(begin), base + places, exact)


def cut(student: Stream, teacher: Stream, length: int, most: int, fill: int) -> Aligned:
    """Both streams in sequences: the student's of `length` tokens, the teacher's of what is read in them, at most `most`
    tokens, filled up with `fill`."""
    asked, told = len(student.ids) - 1, len(teacher.ids) - 1
    count = max(1, -(-asked // length))
    inner = student.places[np.arange(1, count) * length - 1]
    edges = np.array([0, *np.searchsorted(teacher.places[:told], inner, "right"), told])
    width = min(most, -(-max(1, int(np.diff(edges).max())) // ROUND) * ROUND)
    sequence = np.repeat(np.arange(count), np.diff(edges))
    place = np.arange(told) - edges[sequence]
    fits = place < width
    tokens, targets = np.full((count, width), fill, np.int64), np.full((count, width), IGNORED, np.int64)
    tokens[sequence[fits], place[fits]] = teacher.ids[:-1][fits]
    targets[sequence[fits], place[fits]] = np.where(teacher.counted[1:], teacher.ids[1:], IGNORED)[fits]
    rows = np.full(count * length, -1, np.int64)
    mine, theirs = _same_places(student, teacher)
    kept = fits[theirs] & (sequence[theirs] == mine // length)
    rows[mine[kept]] = place[theirs[kept]]
    share = (rows[:asked] >= 0)[student.counted[1:]].sum() / max(1, student.counted[1:].sum())
    shaped = (torch.from_numpy(each) for each in (tokens, targets, rows.reshape(count, length)))
    return Aligned(*shaped, float(share), bool(fits.all()))


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
