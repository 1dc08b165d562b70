"""Texts of a language model: from files of any size to token sequences in a local file.

A file is read twice, and once more to train a tokenizer on it. The first time its rows are checked and counted, so that
some can be held out; then they are tokenized and packed. In memory are some texts at a time, and one byte per text.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from app.recipe.data.sources import Data, Table
from worker.data.alignment import Aligner, aligning, open_aligned, read_both
from worker.data.archive import NDArray
from worker.data.documents import end_of, read_documents
from worker.data.formats import read_pieces
from worker.data.formats.columns import Chats, TextSamples
from worker.data.formats.faults import TABLE_RATIO, data_memory, data_subject, invalid, most_text
from worker.data.holdout import hold_out_any
from worker.data.packing import PackedTexts, open_packed, packing
from worker.data.tokens import TextTokenizer
from worker.limits import reading

SECONDS_BETWEEN_REPORTS = 60.0
"""Between reports of progress; well below the time without messages after which a trainer counts as hung."""


def _nothing() -> None:
    pass


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class PackingDir:
    """Folder for packed texts, and coordination with the other processes."""

    folder: Path
    """Exists only while texts are packed."""
    report: Callable[[str], None] = _silent
    packs: bool = True
    """Whether this process writes the files, which all processes of its machine map."""
    barrier: Callable[[], None] = _nothing
    """Waits until all processes of the job have called it."""

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Create the folder, and delete it in the end; mapped files stay readable."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            yield
        finally:
            if self.packs:
                shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class TextFile:
    """One file of texts or chats."""

    path: Path
    data: Data
    param: str
    """The field that names it."""
    directory: PackingDir

    @property
    def day(self) -> date | None:
        """The date for chat templates."""
        return self.data.chat_date if isinstance(self.data, Table) else None

    def pieces(self, doing: str) -> Iterator[TextSamples | Chats]:
        """All texts or chats in their order, some at a time. Raises UserError (`invalid_data`) naming row and value.
        `doing` is the activity in reports of progress."""
        rows, reported = 0, time.monotonic()
        pieces, taken, most = (
            read_pieces(self.path, self.data, self.param, self.directory.folder),
            0,
            most_text(self.path),
        )
        while True:
            with reading(data_subject(self.param), data_memory(self.path)):
                piece = next(pieces, None)
            if piece is None:
                return
            taken += _characters(piece)
            if taken > most:
                found = f"the texts of {self.param} have more than {most} characters together"
                raise invalid(
                    f"{found}; accepted: at most {TABLE_RATIO} times as many as the file has bytes", self.param
                )
            yield piece
            rows += len(piece[0])
            if time.monotonic() >= reported + SECONDS_BETWEEN_REPORTS:
                reported = time.monotonic()
                self.directory.report(f"{doing} {self.param}: {rows:,} texts so far")

    def talks(self) -> bool:
        """Whether the file has chats."""
        return isinstance(next(self.pieces("opening"), None), Chats)

    def count(self) -> int:
        """Number of texts or chats; raises as `pieces` does."""
        rows = sum(len(piece[0]) for piece in self.pieces("reading"))
        if not rows:
            raise invalid(f"{self.param} has no rows", self.param)
        return rows

    def texts(self) -> Iterator[str]:
        """Texts to train a tokenizer on; none from a file of chats."""
        for piece in self.pieces("training a tokenizer on"):
            yield from piece.first if isinstance(piece, TextSamples) else ()


def _characters(piece: TextSamples | Chats) -> int:
    if isinstance(piece, TextSamples):
        return sum(map(len, piece.first))
    return sum(len(message.content) for talk in piece.talks for message in talk)


def halves_of(texts: int, held_out: int, seed: int) -> NDArray:
    """Split of each text (N,) uint8: 0 for training, 1 for evaluation."""
    halves = np.zeros(texts, np.uint8)
    halves[hold_out_any(texts, held_out, seed)[1].numpy()] = 1
    return halves


def pack_file(file: TextFile, reader: TextTokenizer, length: int, halves: NDArray, paths: Sequence[Path]) -> list[int]:
    """Write text number i into the file at `paths[halves[i]]`; returns the bytes of learned text for each file.

    Raises UserError (`invalid_data`), also if no token is learned.
    """
    with ExitStack() as stack:
        packers = [stack.enter_context(packing(path, reader.vocabulary, length, end_of(reader))) for path in paths]
        documents = read_documents(file.pieces("packing"), reader, file.param, file.day)
        for half, document in zip(halves, documents, strict=True):
            packers[half].add(document)
    if not all(packer.learns for packer in packers):
        found = f"{file.param} has no token to learn; accepted for chats: messages of the role assistant"
        raise invalid(found, file.param)
    return [packer.bytes for packer in packers]


def align_file(
    file: TextFile, readers: tuple[TextTokenizer, TextTokenizer], length: int, halves: NDArray, paths: Sequence[Path]
) -> list[Aligner]:
    """Write beside each file of `pack_file` its texts in the tokens of a teacher with another tokenizer; `readers` are
    those of student and teacher. Raises UserError (`invalid_data`, `invalid_job`)."""
    with ExitStack() as stack:
        aligners = [stack.enter_context(aligning(path, readers[1], length)) for path in paths]
        read = read_both(file.pieces("aligning"), *readers, file.param, file.day)
        for half, both in zip(halves, read, strict=True):
            aligners[half].add(both)
    return aligners


def map_files(
    paths: Sequence[Path],
    directory: PackingDir,
    reader: TextTokenizer,
    length: int,
    others: Sequence[TextTokenizer] = (),
) -> list[PackedTexts]:
    """Map the files that the first process of the machine has packed and aligned, in all of its processes; the files
    may be deleted afterwards."""
    directory.barrier()
    mapped = [
        open_packed(path, reader.vocabulary, length, reader.input_key).beside(
            [open_aligned(path, other, length) for other in others]
        )
        for path in paths
    ]
    directory.barrier()
    return mapped
