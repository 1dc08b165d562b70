"""The tokenizers of a job: the student's, and one for each teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from app.recipe.data.sources import Texts as TextOptions
from app.recipe.data.tokenizers import BytePairs, TeacherTokenizer, WordPiece
from app.recipe.job import JobSpec
from app.recipe.students.model import ModelConfig, TextInput
from app.recipe.teachers.other_tokens import other_tokens_problems
from worker.data.formats.columns import TextSamples
from worker.data.text_limits import reading_tokenizer, tokenizer_subject
from worker.data.tokens import TextTokenizer, load_tokenizer, train_tokenizer, train_writer
from worker.errors import UserError

MOST = 1 << 31
"""More tokens than any model takes at a time."""
WORDS = "words:"
"""Prefix of the input with the word numbers of an input key's tokens."""


class Special(NamedTuple):
    """Ids of special tokens of an input key."""

    pad: int
    mask: int | None


@dataclass(frozen=True)
class Readers:
    """The tokenizers of a job."""

    student: TextTokenizer
    by_teacher: Mapping[str, TextTokenizer]
    """By the teacher's reference."""
    lengths: Mapping[str, int]
    """Most tokens of a text, by input key: as many as all of its models take."""

    @property
    def input(self) -> TextInput:
        """The student's input."""
        student = self.student
        return TextInput(
            length=self.lengths[student.input_key],
            vocabulary=student.vocabulary,
            pad=student.pad,
            separator=student.separator,
        )

    @property
    def special(self) -> dict[str, Special]:
        """Special tokens by input key."""
        return {reader.input_key: Special(reader.pad, reader.mask) for reader in self._all}

    @property
    def others(self) -> dict[str, TextTokenizer]:
        """Teachers' tokenizers that differ from the student's, by input key."""
        return {reader.input_key: reader for reader in self._all if reader.input_key != self.student.input_key}

    @property
    def _all(self) -> list[TextTokenizer]:
        return [self.student, *self.by_teacher.values()]

    def read(self, texts: TextSamples, *, words: bool) -> dict[str, Tensor]:
        """Token ids (N, S) int64 by input key; with `words`, also the word numbers of the tokens (N, S) int32, with the
        prefix `WORDS`."""
        found: dict[str, Tensor] = {}
        for reader in self._all:
            if reader.input_key not in found:
                encoded = reader.encode(texts, self.lengths[reader.input_key])
                found[reader.input_key] = encoded.ids
                found |= {WORDS + reader.input_key: encoded.words} if words else {}
        return found


def open_readers(
    job: JobSpec,
    options: TextOptions,
    folders: Mapping[str, Path],
    teachers: Mapping[str, ModelConfig],
    train: TextSamples,
) -> Readers:
    """Load the teachers' tokenizers from their `folders`, and create the student's as the job sets.

    Raises UserError (`invalid_teacher`, `invalid_job`).
    """
    by_teacher = {
        teacher.reference: _stored(folders[teacher.reference], job.teacher_param(index))
        for index, teacher in enumerate(job.all_teachers)
    }
    student = _students(job, options, folders, list(by_teacher.values()), train)
    lengths = {student.input_key: options.max_length}
    for reference, reader in by_teacher.items():
        lengths[reader.input_key] = min(lengths.get(reader.input_key, options.max_length), _most(teachers[reference]))
    return Readers(student, by_teacher, lengths)


def open_reader(
    job: JobSpec,
    options: TextOptions,
    folders: Mapping[str, Path],
    teachers: Mapping[str, ModelConfig],
    train: Iterable[str],
) -> Readers:
    """The tokenizers of a language model and its teachers. A teacher's tokenizer that produces the student's tokens is
    replaced by the student's, even if it has more tokens.

    Raises UserError (`invalid_teacher`, `invalid_job`), the latter also for terms that need equal tokenizers.
    """
    readers = [
        _stored(folders[teacher.reference], job.teacher_param(index)) for index, teacher in enumerate(job.all_teachers)
    ]
    wanted = options.tokenizer or (TeacherTokenizer() if readers else BytePairs(lowercase=False))
    if isinstance(wanted, BytePairs) and job.start is None:
        student = train_writer(wanted, train)
    else:
        student = _students(job, options, folders, readers, TextSamples([]))
    by_teacher, lengths = {}, {student.input_key: options.max_length}
    for index, (teacher, reader) in enumerate(zip(job.all_teachers, readers, strict=True)):
        by_teacher[teacher.reference] = own = student if student.reads_like(reader) else reader
        if own is not student:
            _require_comparable(job, index, own)
            lengths[own.input_key] = min(lengths.get(own.input_key, MOST), _most(teachers[teacher.reference]))
    return Readers(student, by_teacher, lengths)


def _stored(folder: Path, param: str) -> TextTokenizer:
    """The tokenizer of the model in `folder`; its rules are untrusted, and limited wherever they run."""
    with reading_tokenizer(folder, param):
        tokenizer = load_tokenizer(folder, param)
    tokenizer.subject = tokenizer_subject(param)
    return tokenizer


def _most(teacher: ModelConfig) -> int:
    """Most tokens that a teacher takes at a time."""
    return teacher.input.length if isinstance(teacher.input, TextInput) else MOST


def _require_comparable(job: JobSpec, index: int, reader: TextTokenizer) -> None:
    """Raise UserError for terms that can't use a teacher with another tokenizer."""
    for problem in other_tokens_problems(job, job.all_teachers[index].name):
        message = f"{problem.param}: {problem.message}; accepted: {problem.accepted}"
        raise UserError("invalid_job", message, problem.param)
    if reader.end is None:
        param = job.teacher_param(index)
        raise UserError("invalid_teacher", f"{param} has a tokenizer without a token that ends a text", param)


def _students(
    job: JobSpec,
    options: TextOptions,
    folders: Mapping[str, Path],
    teachers: list[TextTokenizer],
    train: TextSamples,
) -> TextTokenizer:
    if job.start is not None:
        return _stored(folders[job.start.reference], job.start_param)
    wanted = options.tokenizer or (TeacherTokenizer() if teachers else WordPiece())
    if not isinstance(wanted, TeacherTokenizer):
        return train_tokenizer(wanted, train)
    if not teachers:
        message = "data.tokenizer: there is no teacher to take it from; accepted: wordpiece, bpe"
        raise UserError("invalid_job", message, "data.tokenizer")
    return teachers[0]
