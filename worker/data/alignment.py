"""The texts of packed sequences in the tokens of a teacher's own, and where both tokenizers have read the same.

Two tokens may be compared when all that both sides share of the texts is the same up to and including them: then both
models say what comes next behind the same characters. All of a text is shared, and of a chat, which each side writes by
its own template, what is said in it. Places are counted in shared characters, from the first text on; behind every
stretch of them lie two more, before and behind what ends it.

* Offsets are those of the tokenizer itself; post-processors, which some give offsets without spaces, are left out. A
  token that ends within a character (of byte pairs) ends nowhere: the character counts once it is whole.
* Only what decodes to the text that was given is compared, on both sides. A tokenizer that changes texts (small
  letters, other forms of the same characters) so loses the texts that it changes, and those alone.
* The teacher reads what the student reads in a sequence. Of a token that begins before the sequence and ends in it, the
  teacher reads all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from tokenizers import Encoding
from torch import Tensor

from worker.data.archive import NDArray
from worker.data.batches import NEXT, ROWS
from worker.data.chat_templates import Span
from worker.data.chats import LEARNER, ChatWriter
from worker.data.documents import end_of, within_spans
from worker.data.formats.columns import Chats, Talk, TextSamples
from worker.data.formats.faults import invalid
from worker.data.packing import stored_dtype
from worker.data.text_limits import reading_template, write_all
from worker.data.tokens import TextTokenizer
from worker.tensors import IGNORED

BETWEEN = 2
"""Places behind a stretch of shared characters: what ends it is read, and what comes before the next one."""
TOGETHER = 1 << 18
"""Tokens of the student that are looked through at a time."""


class TokenStream(NamedTuple):
    """Texts in the tokens of one side, T of them."""

    ids: NDArray
    """(T,) int64."""
    counted: NDArray
    """(T,) bool: tokens to be predicted."""
    places: NDArray
    """(T,) int64: how far the texts are read with this token; it never falls."""
    exact: NDArray
    """(T,) bool: no character is in parts, and what is read is what was given."""

    def part(self, first: int, end: int | None) -> TokenStream:
        """The tokens from `first` on that come before `end`."""
        return TokenStream(*(side[first:end] for side in self))


class RenderedText(NamedTuple):
    """A text as one side is told it."""

    text: str
    shared: list[Span]
    """Stretches that both sides are told, in their order."""
    learned: list[Span] | None = None
    """What is to be predicted of a chat, whose special tokens are all in the text; none: a text, and all of it."""
    found: bool = True
    """Whether all that is to be predicted stands among what is shared."""
    touched: bool = False
    """Whether tokens are to be predicted that have any character in `learned`; else those that begin there."""


class _TextRenderer:
    """Tells the samples of the file that the field `param` names to the side with this tokenizer."""

    def __init__(self, reader: TextTokenizer, param: str, day: date | None) -> None:
        self._reader, self._param, self._day, self._row = reader, param, day, 0
        self._writer: ChatWriter | None = None

    def tell(self, samples: TextSamples | Chats) -> list[RenderedText]:
        """Some samples after the other. Raises UserError (`invalid_job`, `invalid_data`)."""
        if isinstance(samples, TextSamples):
            return [RenderedText(text, [(0, len(text))]) for text in samples.first]
        with reading_template():
            self._writer = writer = self._writer or ChatWriter(self._reader, self._param, self._day)
        first, self._row = self._row, self._row + len(samples.talks)
        written = enumerate(write_all(writer, samples.talks, first))
        return [self._chat(writer, samples.talks[index], *both, first + index) for index, both in written]

    def _chat(self, writer: ChatWriter, talk: Talk, text: str, spans: list[Span], row: int) -> RenderedText:
        answers = sum(message.role == LEARNER for message in talk)
        if len(spans) != answers:
            found = f"row {row} of {self._param}: the chat template marks {len(spans)} stretches in {answers} answers"
            raise invalid(f"{found}; accepted beside other tokens: one stretch an answer", self._param)
        return _chat(talk, text, spans)._replace(touched=writer.marks)


def _chat(talk: Talk, text: str, answers: list[Span]) -> RenderedText:
    """Templates may strip what is said, and so it is stripped here. What stands nowhere is taken for the text at its
    place: then nothing of the chat is compared, if it is an answer."""
    shared, found, cursor = list[Span](), True, 0
    following = iter([*answers, (len(text), len(text))])
    upcoming = next(following)
    for message in talk:
        words, learned = message.content.strip(), message.role == LEARNER
        start, end = upcoming if learned else (cursor, upcoming[0])
        if learned and not start:  # nobody has spoken: its span begins with what the template writes, and is left out
            words = ""
        place = text.find(words, start, end)
        found &= place >= 0 or not learned
        cursor = max(place, start)
        shared.append((cursor, cursor + len(words)))
        if learned:
            cursor, upcoming = end, next(following)
    return RenderedText(text, shared, answers, found)


Reading = tuple["TokenizedText", "TokenizedText"]
"""One text in the tokens of student and teacher."""


class TokenizedText(NamedTuple):
    """One text in the tokens of one side."""

    told: RenderedText
    encoding: Encoding
    begin: list[int]
    """What stands before it; nothing before a chat."""
    end: int
    unchanged: bool
    """Whether the tokens say what both sides are told."""


def _read(told: Sequence[RenderedText], reader: TextTokenizer) -> Iterator[TokenizedText]:
    begin, end = reader.begin, end_of(reader)
    for one, encoding in zip(told, reader.encode_whole([each.text for each in told]), strict=True):
        unchanged = one.found and all(_says(reader, encoding, one.text, span) for span in one.shared)
        yield TokenizedText(one, encoding, begin if one.learned is None else [], end, unchanged)


def _says(reader: TextTokenizer, encoding: Encoding, text: str, span: Span) -> bool:
    """Whether the tokens of a stretch of the text decode to it."""
    start, end = span
    ids = [i for i, (first, last) in zip(encoding.ids, encoding.offsets, strict=True) if last > start and first < end]
    return text[start:end] in reader.text(ids)


def _characters(told: RenderedText) -> int:
    """Places that a text takes."""
    return sum(end - start + BETWEEN for start, end in told.shared)


def _placed(read: TokenizedText, base: int, comparable: bool) -> TokenStream:
    """A text whose first place is `base`. The token that ends it predicts the next text, where no other token begins
    one; behind a chat comes what a template writes."""
    told, begin = read.told, read.begin
    offsets = np.array(read.encoding.offsets, np.int64).reshape(-1, 2)
    reached = np.maximum.accumulate(offsets[:, 1])
    untouched = np.append(np.minimum.accumulate(offsets[::-1, 0])[::-1][1:], len(told.text))[: len(reached)]
    places, within = _count(reached, told.shared)
    last = told.learned is None and not begin
    places = np.concatenate((np.zeros(len(begin), np.int64), places, [_characters(told) - (not last)]))
    exact = np.concatenate((np.ones(len(begin), bool), within & (reached <= untouched), [last])) & comparable
    ids = np.array([*begin, *read.encoding.ids, read.end], np.int64)
    counted = np.arange(len(ids)) >= len(begin)
    if told.learned is not None:
        counted = np.append(within_spans(read.encoding, told.learned, len(told.text), touched=told.touched), False)
    return TokenStream(ids, counted, base + places, exact)


def _count(reached: NDArray, shared: Sequence[Span]) -> tuple[NDArray, NDArray]:
    """Places of ends of tokens (T,), counted in characters of a text; and which of them lie within what is shared."""
    starts, ends = np.array(shared, np.int64).T
    lengths = ends - starts
    before = np.append(0, np.cumsum(lengths + BETWEEN))
    number = np.searchsorted(starts, reached, "right") - 1
    inside = number.clip(0)
    behind = np.minimum(reached - starts[inside], lengths[inside] + 1)
    return np.where(number < 0, 0, before[inside] + behind), (number >= 0) & (reached <= ends[inside])


def read_both(
    pieces: Iterable[TextSamples | Chats],
    student: TextTokenizer,
    teacher: TextTokenizer,
    param: str,
    day: date | None = None,
) -> Iterator[Reading]:
    """All samples of the file that the field `param` names, in their order, in the tokens of both sides; chats are
    written as on `day`.

    Raises UserError (`invalid_job`, `invalid_data`).
    """
    tellers = [(_TextRenderer(reader, param, day), reader) for reader in (student, teacher)]
    for piece in pieces:
        ours, theirs = (_read(teller.tell(piece), reader) for teller, reader in tellers)
        yield from zip(ours, theirs, strict=True)


class _Files(NamedTuple):
    """What is written of a teacher's tokens."""

    tokens: Path
    """One number a token, as `packing` stores it."""
    edges: Path
    """int64: the first token of each of the student's sequences, and the one behind the last."""
    rows: Path
    """int32: for every token of the student's the place in the teacher's sequence, -1 where there is none."""


def _files(path: Path, reader: TextTokenizer) -> _Files:
    return _Files(*(path.with_name(f"{path.name}-{reader.digest}-{name}") for name in _Files._fields))


class Aligner:
    """Writes the texts in the teacher's tokens, and where the student's sequences of `length` tokens have read the
    same. Sequences are those of `packing`."""

    def __init__(self, files: Sequence[IO[bytes]], teacher: TextTokenizer, length: int) -> None:
        self._tokens, self._edges, self._rows = files
        self._dtype, self._fill, self._length = stored_dtype(teacher.vocabulary), end_of(teacher), length
        self._pending: tuple[list[TokenStream], list[TokenStream]] = ([], [])
        self._held = self._base = self._sequences = self._written = self._asked = self._found = 0
        self.longest = 0
        """Most tokens that the teacher reads in one of the student's sequences."""
        self._edges.write(np.zeros(1, np.int64).tobytes())

    @property
    def share(self) -> float:
        """Of the student's tokens to be predicted, those that the teacher has something to say about."""
        return self._found / max(1, self._asked)

    def add(self, both: Reading) -> None:
        """Lay a text behind the others."""
        comparable = all(one.unchanged for one in both)
        for side, one in zip(self._pending, both, strict=True):
            side.append(_placed(one, self._base, comparable))
        self._base += _characters(both[0].told)
        self._held += len(self._pending[0][-1].ids)
        if self._held >= TOGETHER:
            self._cut(whole=False)

    def finish(self) -> None:
        """Write what is left; the very last token is a target alone."""
        self._cut(whole=True)
        [rest] = self._pending[1]
        codes = np.where(rest.counted, rest.ids, ~rest.ids)
        self._tokens.write(np.append(codes, ~self._fill).astype(self._dtype).tobytes())

    def _cut(self, *, whole: bool) -> None:
        """Write the sequences that end before the next text begins, or all."""
        ours, theirs = (_joined(side) for side in self._pending)
        asked, told = len(ours.ids) - whole, len(theirs.ids) - whole
        # two tokens are left, so that there is a last sequence to read all that is left of the teacher's
        ready = max(0, min(int(np.searchsorted(ours.places, self._base)), len(ours.ids) - 2))
        count = max(self._sequences == 0, -(-asked // self._length)) if whole else ready // self._length
        ends = np.minimum(np.arange(1, count + 1) * self._length, asked)
        edges = np.append(0, np.searchsorted(theirs.places[:told], ours.places[ends - 1], "right"))
        if whole and count:
            edges[-1] = told
        mine, others = ours.part(0, int(ends[-1]) if count else 0), theirs.part(0, int(edges[-1]))
        self._write(mine, others, edges, np.append(ours.counted[1:], False)[: len(mine.ids)])
        self._pending = ([ours.part(len(mine.ids), None)], [theirs.part(len(others.ids), None)])
        self._held = len(self._pending[0][0].ids)

    def _write(self, ours: TokenStream, theirs: TokenStream, edges: NDArray, counted: NDArray) -> None:
        """Tokens of some sequences; `edges` are those of the teacher's, `counted` says what the student predicts."""
        lengths = np.diff(edges)
        rows = np.full(len(lengths) * self._length, -1, np.int32)
        sequence = np.repeat(np.arange(len(lengths)), lengths)
        mine, others = _same_places(ours, theirs)
        together = sequence[others] == mine // self._length
        rows[mine[together]] = (others - edges[sequence[others]])[together]
        self._rows.write(rows.tobytes())
        self._tokens.write(np.where(theirs.counted, theirs.ids, ~theirs.ids).astype(self._dtype).tobytes())
        self._edges.write((self._written + edges[1:]).astype(np.int64).tobytes())
        self._written, self._sequences = self._written + len(theirs.ids), self._sequences + len(lengths)
        self.longest = max(self.longest, int(lengths.max(initial=0)))
        self._asked += int(counted.sum())
        self._found += int((counted & (rows[: len(counted)] >= 0)).sum())


def _joined(streams: Sequence[TokenStream]) -> TokenStream:
    return TokenStream(*map(np.concatenate, zip(*streams, strict=True)))


@contextmanager
def aligning(path: Path, teacher: TextTokenizer, length: int) -> Iterator[Aligner]:
    """Writes beside the file of packed texts at `path`; all is there when the context is left without an error."""
    with ExitStack() as stack:
        files = [stack.enter_context(file.open("wb")) for file in _files(path, teacher)]
        yield (aligner := Aligner(files, teacher, length))
        aligner.finish()


class OtherTokens(NamedTuple):
    """What `aligning` wrote, mapped."""

    input_key: str
    codes: Tensor
    """(T + 1,): as they are stored."""
    edges: Tensor
    """(N + 1,) int64."""
    rows: Tensor
    """(N, S) int32."""
    width: int
    """Tokens of the longest sequence."""
    fill: int
    """Token that shorter ones are filled up with."""

    def take(self, numbers: Tensor) -> dict[str, Tensor]:
        """Of some sequences (n,): the teacher's tokens (n, W), what comes behind each of them, IGNORED where that is
        not to be predicted, and the places (n, S) of `TeacherSignal.rows`; all int64."""
        at = self.edges[numbers].unsqueeze(1) + torch.arange(self.width)
        inside = at < self.edges[numbers + 1].unsqueeze(1)
        at = at.clamp(max=len(self.codes) - 2)
        codes, behind = self.codes[at].long(), self.codes[at + 1].long()
        tokens = torch.where(codes >= 0, codes, ~codes).where(inside, self.fill)
        targets = behind.where(inside & (behind >= 0), IGNORED)
        return {
            self.input_key: tokens,
            NEXT + self.input_key: targets,
            ROWS + self.input_key: self.rows[numbers].long(),
        }


def open_aligned(path: Path, teacher: TextTokenizer, length: int) -> OtherTokens:
    """What was written beside the packed texts at `path`; the files may go afterwards."""
    files = _files(path, teacher)
    codes, edges, rows = (
        torch.from_file(str(file), shared=False, size=file.stat().st_size // dtype.itemsize, dtype=dtype)
        for file, dtype in zip(
            files, (getattr(torch, stored_dtype(teacher.vocabulary)), torch.int64, torch.int32), strict=True
        )
    )
    width = max(1, int(edges.diff().max()))
    return OtherTokens(teacher.input_key, codes, edges, rows.view(-1, length), width, end_of(teacher))


def _same_places(student: TokenStream, teacher: TokenStream) -> tuple[NDArray, NDArray]:
    """Numbers of tokens on both sides that end at the same place: the last ones that do, on each side."""
    (own, mine), (others, theirs) = (_last_at(side) for side in (student, teacher))
    _, at, there = np.intersect1d(own, others, assume_unique=True, return_indices=True)
    return mine[at], theirs[there]


def _last_at(side: TokenStream) -> tuple[NDArray, NDArray]:
    """Places that tokens end exactly at, rising, and the last token that does."""
    numbers = side.exact.nonzero()[0]
    places = side.places[numbers]
    final = np.append(np.diff(places) > 0, True)[: len(places)]
    return places[final], numbers[final]
