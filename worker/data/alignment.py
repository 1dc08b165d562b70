"""Packed texts in the tokens of a teacher with another tokenizer, and the alignment of both tokenizations.

Two tokens are aligned if the shared text up to and including them is the same: then both models predict what follows
the same characters. All of a text is shared; of a chat, which each side renders by its template, the messages' contents
are. Positions are counted in shared characters, from the first text on; after every shared span come two more, before
and after what ends it.

* Offsets are those of the tokenizer itself. Post-processors are left out, because some give offsets without spaces. A
  token that ends within a character (of byte pairs) is not aligned: a character counts once it is complete.
* Only tokens that decode to the original text are aligned, on both sides. With a tokenizer that changes texts (lower
  case, normalised characters), the texts that it changes are not aligned.
* The teacher's sequence covers the text of the student's sequence. A token that begins before the sequence and ends in
  it is part of the teacher's sequence.
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
"""Positions after a shared span: after what ends it, and before the next one."""
TOGETHER = 1 << 18
"""Tokens of the student that are aligned at a time."""


class TokenStream(NamedTuple):
    """Texts as T tokens of one side."""

    ids: NDArray
    """(T,) int64."""
    counted: NDArray
    """(T,) bool: tokens to be predicted."""
    places: NDArray
    """(T,) int64: position in the texts after this token, nondecreasing."""
    exact: NDArray
    """(T,) bool: the token ends at a complete character, and the tokens decode to the text."""

    def part(self, first: int, end: int | None) -> TokenStream:
        """The tokens from `first` to before `end`."""
        return TokenStream(*(side[first:end] for side in self))


class RenderedText(NamedTuple):
    """A text as rendered for one side."""

    text: str
    shared: list[Span]
    """Spans of content that both sides share, in their order."""
    learned: list[Span] | None = None
    """Spans to be predicted of a chat, whose special tokens are all in the text; none: a text, all of which is."""
    found: bool = True
    """Whether all that is to be predicted is shared."""
    touched: bool = False
    """Whether tokens with any character in `learned` are to be predicted; else those that begin there."""


class _TextRenderer:
    """Renders the samples of the file that the field `param` names for the side with this tokenizer."""

    def __init__(self, reader: TextTokenizer, param: str, day: date | None) -> None:
        self._reader, self._param, self._day, self._row = reader, param, day, 0
        self._writer: ChatWriter | None = None

    def render(self, samples: TextSamples | Chats) -> list[RenderedText]:
        """The next samples, in their order. Raises UserError (`invalid_job`, `invalid_data`)."""
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
            found = f"row {row} of {self._param}: the chat template marks {len(spans)} spans in {answers} answers"
            raise invalid(f"{found}; accepted with another tokenizer: one span an answer", self._param)
        return _chat(talk, text, spans)._replace(touched=writer.marks)


def _chat(talk: Talk, text: str, answers: list[Span]) -> RenderedText:
    """Contents are stripped here, because templates may strip them. A content that isn't found takes the position where
    it was expected; if it is an answer, nothing of the chat is aligned."""
    shared, found, cursor = list[Span](), True, 0
    following = iter([*answers, (len(text), len(text))])
    upcoming = next(following)
    for message in talk:
        words, learned = message.content.strip(), message.role == LEARNER
        start, end = upcoming if learned else (cursor, upcoming[0])
        if learned and not start:  # no message before it: its span begins with the template's text, and is left out
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
    """One text as tokens of one side."""

    rendered: RenderedText
    encoding: Encoding
    begin: list[int]
    """Tokens before it; none before a chat."""
    end: int
    unchanged: bool
    """Whether the tokens decode to what both sides share."""


def _tokenize(texts: Sequence[RenderedText], reader: TextTokenizer) -> Iterator[TokenizedText]:
    begin, end = reader.begin, end_of(reader)
    for one, encoding in zip(texts, reader.encode_whole([each.text for each in texts]), strict=True):
        unchanged = one.found and all(_decodes_to(reader, encoding, one.text, span) for span in one.shared)
        yield TokenizedText(one, encoding, begin if one.learned is None else [], end, unchanged)


def _decodes_to(reader: TextTokenizer, encoding: Encoding, text: str, span: Span) -> bool:
    """Whether the tokens of a span of the text decode to it."""
    start, end = span
    ids = [i for i, (first, last) in zip(encoding.ids, encoding.offsets, strict=True) if last > start and first < end]
    return text[start:end] in reader.text(ids)


def _characters(rendered: RenderedText) -> int:
    """Number of a text's positions."""
    return sum(end - start + BETWEEN for start, end in rendered.shared)


def _placed(read: TokenizedText, base: int, comparable: bool) -> TokenStream:
    """Tokens of a text whose first position is `base`. The token that ends it predicts the next text, unless a token
    begins one; after a chat comes the template's text."""
    rendered, begin = read.rendered, read.begin
    offsets = np.array(read.encoding.offsets, np.int64).reshape(-1, 2)
    reached = np.maximum.accumulate(offsets[:, 1])
    untouched = np.append(np.minimum.accumulate(offsets[::-1, 0])[::-1][1:], len(rendered.text))[: len(reached)]
    places, within = _count(reached, rendered.shared)
    last = rendered.learned is None and not begin
    places = np.concatenate((np.zeros(len(begin), np.int64), places, [_characters(rendered) - (not last)]))
    exact = np.concatenate((np.ones(len(begin), bool), within & (reached <= untouched), [last])) & comparable
    ids = np.array([*begin, *read.encoding.ids, read.end], np.int64)
    counted = np.arange(len(ids)) >= len(begin)
    if rendered.learned is not None:
        counted = np.append(
            within_spans(read.encoding, rendered.learned, len(rendered.text), touched=rendered.touched), False
        )
    return TokenStream(ids, counted, base + places, exact)


def _count(reached: NDArray, shared: Sequence[Span]) -> tuple[NDArray, NDArray]:
    """Positions of the ends of tokens, (T,) int64 from ends counted in characters of a text; and (T,) bool, which of
    them are in shared spans."""
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
    """All samples of the file that the field `param` names, in their order, tokenized for both sides; templates get
    `day` as the date.

    Raises UserError (`invalid_job`, `invalid_data`).
    """
    renderers = [(_TextRenderer(reader, param, day), reader) for reader in (student, teacher)]
    for piece in pieces:
        own, others = (_tokenize(renderer.render(piece), reader) for renderer, reader in renderers)
        yield from zip(own, others, strict=True)


class _Files(NamedTuple):
    """Files with a teacher's tokens."""

    tokens: Path
    """One number per token, as `packing` stores it."""
    edges: Path
    """int64: the first teacher token of each of the student's sequences, and the end of the last."""
    rows: Path
    """int32: for every token of the student the index in the teacher's sequence, -1 if there is none."""


def _files(path: Path, reader: TextTokenizer) -> _Files:
    return _Files(*(path.with_name(f"{path.name}-{reader.digest}-{name}") for name in _Files._fields))


class Aligner:
    """Writes the texts in the teacher's tokens, and their alignment with the student's sequences of `length` tokens.
    Sequences are those of `packing`."""

    def __init__(self, files: Sequence[IO[bytes]], teacher: TextTokenizer, length: int) -> None:
        self._tokens, self._edges, self._rows = files
        self._dtype, self._fill, self._length = stored_dtype(teacher.vocabulary), end_of(teacher), length
        self._pending: tuple[list[TokenStream], list[TokenStream]] = ([], [])
        self._held = self._base = self._sequences = self._written = self._predicted = self._found = 0
        self.longest = 0
        """Most teacher tokens in one of the student's sequences."""
        self._edges.write(np.zeros(1, np.int64).tobytes())

    @property
    def share(self) -> float:
        """Share of the student's tokens to be predicted for which there is a teacher prediction."""
        return self._found / max(1, self._predicted)

    def add(self, both: Reading) -> None:
        """Append a text."""
        comparable = all(one.unchanged for one in both)
        for side, one in zip(self._pending, both, strict=True):
            side.append(_placed(one, self._base, comparable))
        self._base += _characters(both[0].rendered)
        self._held += len(self._pending[0][-1].ids)
        if self._held >= TOGETHER:
            self._cut(whole=False)

    def finish(self) -> None:
        """Write the rest; the very last token is only a target."""
        self._cut(whole=True)
        [rest] = self._pending[1]
        codes = np.where(rest.counted, rest.ids, ~rest.ids)
        self._tokens.write(np.append(codes, ~self._fill).astype(self._dtype).tobytes())

    def _cut(self, *, whole: bool) -> None:
        """Write the sequences that end before the next text begins; with `whole`, all."""
        student, teacher = (_joined(side) for side in self._pending)
        student_end, teacher_end = len(student.ids) - whole, len(teacher.ids) - whole
        # two tokens are left, so that a last sequence has all remaining tokens of the teacher
        ready = max(0, min(int(np.searchsorted(student.places, self._base)), len(student.ids) - 2))
        count = max(self._sequences == 0, -(-student_end // self._length)) if whole else ready // self._length
        ends = np.minimum(np.arange(1, count + 1) * self._length, student_end)
        edges = np.append(0, np.searchsorted(teacher.places[:teacher_end], student.places[ends - 1], "right"))
        if whole and count:
            edges[-1] = teacher_end
        student_part, teacher_part = student.part(0, int(ends[-1]) if count else 0), teacher.part(0, int(edges[-1]))
        self._write(student_part, teacher_part, edges, np.append(student.counted[1:], False)[: len(student_part.ids)])
        self._pending = ([student.part(len(student_part.ids), None)], [teacher.part(len(teacher_part.ids), None)])
        self._held = len(self._pending[0][0].ids)

    def _write(self, student: TokenStream, teacher: TokenStream, edges: NDArray, counted: NDArray) -> None:
        """Write some sequences; `edges` are the teacher's, `counted` (T,) bool: tokens that the student predicts."""
        lengths = np.diff(edges)
        rows = np.full(len(lengths) * self._length, -1, np.int32)
        sequence = np.repeat(np.arange(len(lengths)), lengths)
        student_rows, teacher_rows = _same_places(student, teacher)
        together = sequence[teacher_rows] == student_rows // self._length
        rows[student_rows[together]] = (teacher_rows - edges[sequence[teacher_rows]])[together]
        self._rows.write(rows.tobytes())
        self._tokens.write(np.where(teacher.counted, teacher.ids, ~teacher.ids).astype(self._dtype).tobytes())
        self._edges.write((self._written + edges[1:]).astype(np.int64).tobytes())
        self._written, self._sequences = self._written + len(teacher.ids), self._sequences + len(lengths)
        self.longest = max(self.longest, int(lengths.max(initial=0)))
        self._predicted += int(counted.sum())
        self._found += int((counted & (rows[: len(counted)] >= 0)).sum())


def _joined(streams: Sequence[TokenStream]) -> TokenStream:
    return TokenStream(*map(np.concatenate, zip(*streams, strict=True)))


@contextmanager
def aligning(path: Path, teacher: TextTokenizer, length: int) -> Iterator[Aligner]:
    """An aligner that writes beside the file of packed texts at `path`; complete if the context ends without an
    error."""
    with ExitStack() as stack:
        files = [stack.enter_context(file.open("wb")) for file in _files(path, teacher)]
        yield (aligner := Aligner(files, teacher, length))
        aligner.finish()


class OtherTokens(NamedTuple):
    """Files of `aligning`, memory-mapped."""

    input_key: str
    codes: Tensor
    """(T + 1,) integers, as they are stored."""
    edges: Tensor
    """(N + 1,) int64."""
    rows: Tensor
    """(N, S) int32."""
    width: int
    """Tokens of the longest sequence."""
    fill: int
    """Token that pads shorter ones."""

    def take(self, numbers: Tensor) -> dict[str, Tensor]:
        """For sequences (n,) int64: the teacher's tokens (n, W), the next token of each (n, W), IGNORED if it is not to
        be predicted, and the indices (n, S) of `TeacherSignal.rows`; all int64."""
        at = self.edges[numbers].unsqueeze(1) + torch.arange(self.width)
        inside = at < self.edges[numbers + 1].unsqueeze(1)
        at = at.clamp(max=len(self.codes) - 2)
        codes, following = self.codes[at].long(), self.codes[at + 1].long()
        tokens = torch.where(codes >= 0, codes, ~codes).where(inside, self.fill)
        targets = following.where(inside & (following >= 0), IGNORED)
        return {
            self.input_key: tokens,
            NEXT + self.input_key: targets,
            ROWS + self.input_key: self.rows[numbers].long(),
        }


def open_aligned(path: Path, teacher: TextTokenizer, length: int) -> OtherTokens:
    """Open what `aligning` wrote beside the packed texts at `path`; the files may be deleted afterwards."""
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
    """Indices, (n,) int64 each, of the student's and teacher's tokens that end at the same position: the last such
    token of each side."""
    (own, student_rows), (others, teacher_rows) = (_last_at(side) for side in (student, teacher))
    _, at, there = np.intersect1d(own, others, assume_unique=True, return_indices=True)
    return student_rows[at], teacher_rows[there]


def _last_at(side: TokenStream) -> tuple[NDArray, NDArray]:
    """Ascending positions at which a token ends exactly, and the index of the last such token: (n,) int64 each."""
    numbers = side.exact.nonzero()[0]
    places = side.places[numbers]
    final = np.append(np.diff(places) > 0, True)[: len(places)]
    return places[final], numbers[final]
