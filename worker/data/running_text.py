"""The texts of a language model, from files of any size to sequences of tokens in a file of this machine.

A file is gone through twice, and once more where a tokenizer is made of it: its rows are counted, so that all of them
are known to be sound and some can be held out, and then read, cut into tokens and packed. What is held in memory of
it are some texts at a time, and a byte a text.
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
from worker.data.formats.faults import TABLE_RATIO, data_room, data_subject, invalid, most_text
from worker.data.holdout import hold_out_any
from worker.data.packing import PackedTexts, open_packed, packing
from worker.data.tokens import TextTokenizer
from worker.limits import reading

SECONDS_BETWEEN_WORDS = 60.0
"""Of what is being done; well below the silence after which a trainer is taken to hang."""


def _nothing() -> None:
    pass


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class PackingDir:
    """Where texts are packed, and with whom."""

    folder: Path
    """There while texts are packed."""
    say: Callable[[str], None] = _silent
    packs: bool = True
    """Whether this process writes the files that all processes of its machine map."""
    barrier: Callable[[], None] = _nothing
    """Waits until all processes of the job are here."""

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Nothing is left in the folder: what has been mapped stays, however the job ends."""
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
    workplace: PackingDir

    @property
    def day(self) -> date | None:
        """The day that templates of chats are told."""
        return self.data.chat_date if isinstance(self.data, Table) else None

    def pieces(self, doing: str) -> Iterator[TextSamples | Chats]:
        """All of them in their order, some at a time. Raises UserError (`invalid_data`) naming row and value."""
        rows, said = 0, time.monotonic()
        pieces, taken, most = (
            read_pieces(self.path, self.data, self.param, self.workplace.folder),
            0,
            most_text(self.path),
        )
        while True:
            with reading(data_subject(self.param), data_room(self.path)):
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
            if time.monotonic() >= said + SECONDS_BETWEEN_WORDS:
                said = time.monotonic()
                self.workplace.say(f"{doing} {self.param}: {rows:,} texts so far")

    def talks(self) -> bool:
        """Whether it holds chats."""
        return isinstance(next(self.pieces("opening"), None), Chats)

    def count(self) -> int:
        """How many there are; raises as `pieces` does."""
        rows = sum(len(piece[0]) for piece in self.pieces("reading"))
        if not rows:
            raise invalid(f"{self.param} has no rows", self.param)
        return rows

    def texts(self) -> Iterator[str]:
        """To make a tokenizer of; none of a file of chats."""
        for piece in self.pieces("making a tokenizer of"):
            yield from piece.first if isinstance(piece, TextSamples) else ()


def _characters(piece: TextSamples | Chats) -> int:
    if isinstance(piece, TextSamples):
        return sum(map(len, piece.first))
    return sum(len(message.content) for talk in piece.talks for message in talk)


def halves_of(texts: int, held_out: int, seed: int) -> NDArray:
    """(N,) uint8: of each text 0 to train on, 1 to evaluate on."""
    halves = np.zeros(texts, np.uint8)
    halves[hold_out_any(texts, held_out, seed)[1].numpy()] = 1
    return halves


def pack_file(file: TextFile, reader: TextTokenizer, length: int, halves: NDArray, paths: Sequence[Path]) -> list[int]:
    """Write text number i into the file at `paths[halves[i]]`; returns the bytes of text that are learned of each file.

    Raises UserError (`invalid_data`), also where nothing of them is learned.
    """
    with ExitStack() as stack:
        packers = [stack.enter_context(packing(path, reader.vocabulary, length, end_of(reader))) for path in paths]
        documents = read_documents(file.pieces("packing"), reader, file.param, file.day)
        for half, document in zip(halves, documents, strict=True):
            packers[half].add(document)
    if not all(packer.learns for packer in packers):
        found = f"{file.param} holds no token to learn: of chats these are what the role assistant says"
        raise invalid(found, file.param)
    return [packer.bytes for packer in packers]


def align_file(
    file: TextFile, readers: tuple[TextTokenizer, TextTokenizer], length: int, halves: NDArray, paths: Sequence[Path]
) -> list[Aligner]:
    """Write beside each file of `pack_file` what a teacher with another tokenizer reads of it; `readers` are those of
    student and teacher. Raises UserError (`invalid_data`, `invalid_job`)."""
    with ExitStack() as stack:
        aligners = [stack.enter_context(aligning(path, readers[1], length)) for path in paths]
        read = read_both(file.pieces("aligning"), *readers, file.param, file.day)
        for half, both in zip(halves, read, strict=True):
            aligners[half].add(both)
    return aligners


def map_files(
    paths: Sequence[Path],
    workplace: PackingDir,
    reader: TextTokenizer,
    length: int,
    others: Sequence[TextTokenizer] = (),
) -> list[PackedTexts]:
    """What the first process of the machine has packed and aligned, for all of its processes; the files may go
    afterwards."""
    workplace.barrier()
    mapped = [
        open_packed(path, reader.vocabulary, length, reader.input_key).beside(
            [open_aligned(path, other, length) for other in others]
        )
        for path in paths
    ]
    workplace.barrier()
    return mapped
