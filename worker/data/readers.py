"""Which tokenizer reads the texts of a job for the student, and which for each of its teachers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from app.recipe.data import Texts as TextOptions
from app.recipe.job import JobSpec
from app.recipe.model import ModelConfig, TextInput
from app.recipe.students import Pretrained
from app.recipe.tokenizers import BytePairs, TeacherTokenizer, WordPiece
from worker.data.formats.columns import Texts
from worker.data.tokens import TextTokenizer, load_tokenizer, train_tokenizer, train_writer
from worker.errors import UserError

WORDS = "words:"
"""Begins the name of the input that tells the words of a view's tokens."""


class Special(NamedTuple):
    """Token ids of a view that mean no text."""

    pad: int
    mask: int | None


@dataclass(frozen=True)
class Readers:
    """The tokenizers of a job."""

    student: TextTokenizer
    by_teacher: Mapping[str, TextTokenizer]
    """By the teacher's reference."""
    lengths: Mapping[str, int]
    """Most tokens of a text, by view: what all that read it can take."""

    @property
    def input(self) -> TextInput:
        """What the student takes."""
        own = self.student
        return TextInput(length=self.lengths[own.view], vocabulary=own.vocabulary, pad=own.pad, separator=own.separator)

    @property
    def special(self) -> dict[str, Special]:
        """By view."""
        return {reader.view: Special(reader.pad, reader.mask) for reader in self._all}

    @property
    def _all(self) -> list[TextTokenizer]:
        return [self.student, *self.by_teacher.values()]

    def read(self, texts: Texts, *, words: bool) -> dict[str, Tensor]:
        """Token ids (N, S) by view; with `words`, the words of the tokens too, under the view's name after `WORDS`."""
        found: dict[str, Tensor] = {}
        for reader in self._all:
            if reader.view not in found:
                encoded = reader.encode(texts, self.lengths[reader.view])
                found[reader.view] = encoded.ids
                found |= {WORDS + reader.view: encoded.words} if words else {}
        return found


def open_readers(
    job: JobSpec, options: TextOptions, folders: Mapping[str, Path], teachers: Mapping[str, ModelConfig], train: Texts
) -> Readers:
    """Load the teachers' tokenizers from their `folders`, and make the student's as the job asks.

    Raises UserError (`invalid_teacher`, `invalid_job`).
    """
    by_teacher = {
        teacher.reference: load_tokenizer(folders[teacher.reference], job.teacher_param(index))
        for index, teacher in enumerate(job.all_teachers)
    }
    student = _students(job, options, folders, list(by_teacher.values()), train)
    lengths = {student.view: options.max_length}
    for reference, reader in by_teacher.items():
        taken = teachers[reference].input
        most = taken.length if isinstance(taken, TextInput) else options.max_length
        lengths[reader.view] = min(lengths.get(reader.view, options.max_length), most)
    return Readers(student, by_teacher, lengths)


def open_reader(
    job: JobSpec,
    options: TextOptions,
    folders: Mapping[str, Path],
    teachers: Mapping[str, ModelConfig],
    train: Iterable[str],
) -> Readers:
    """The one tokenizer of a language model and of all its teachers, whose answers are about the same tokens.

    Teachers may know more tokens. Raises UserError (`invalid_teacher`, `invalid_job`).
    """
    readers = [
        load_tokenizer(folders[teacher.reference], job.teacher_param(index))
        for index, teacher in enumerate(job.all_teachers)
    ]
    wanted = options.tokenizer or (TeacherTokenizer() if readers else BytePairs(lowercase=False))
    if isinstance(wanted, BytePairs) and not isinstance(job.student, Pretrained):
        student = train_writer(wanted, train)
    else:
        student = _students(job, options, folders, readers, Texts([]))
    for index, reader in enumerate(readers):
        if not student.reads_like(reader):
            param = job.teacher_param(index)
            whose = "the student" if isinstance(job.student, Pretrained) else "the first"
            message = f"{param} reads other tokens than the student; accepted: teachers with the tokenizer of {whose}"
            raise UserError("invalid_teacher", message, param)
    by_teacher = {teacher.reference: student for teacher in job.all_teachers}
    return Readers(student, by_teacher, {student.view: options.max_length})


def _students(
    job: JobSpec,
    options: TextOptions,
    folders: Mapping[str, Path],
    teachers: list[TextTokenizer],
    train: Texts,
) -> TextTokenizer:
    if isinstance(job.student, Pretrained):
        return load_tokenizer(folders[job.student.reference], f"student.{job.student.source}")
    wanted = options.tokenizer or (TeacherTokenizer() if teachers else WordPiece())
    if not isinstance(wanted, TeacherTokenizer):
        return train_tokenizer(wanted, train)
    if not teachers:
        message = "data.tokenizer: there is no teacher to take it from (accepted: wordpiece or bpe)"
        raise UserError("invalid_job", message, "data.tokenizer")
    return teachers[0]
