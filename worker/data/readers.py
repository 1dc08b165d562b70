"""Which tokenizer reads the texts of a job for the student, and which for each of its teachers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from app.recipe.data.sources import Texts as TextOptions
from app.recipe.data.tokenizers import BytePairs, TeacherTokenizer, WordPiece
from app.recipe.job import JobSpec
from app.recipe.students.architectures import Pretrained
from app.recipe.students.model import ModelConfig, TextInput
from app.recipe.teachers.other_tokens import other_tokens_problems
from worker.data.formats.columns import TextSamples
from worker.data.text_limits import reading_tokenizer, tokenizer_subject
from worker.data.tokens import TextTokenizer, load_tokenizer, train_tokenizer, train_writer
from worker.errors import UserError

MOST = 1 << 31
"""More tokens than any model reads at a time."""
WORDS = "words:"
"""Begins the name of the input that tells the words of an input key's tokens."""


class Special(NamedTuple):
    """Token ids of an input key that mean no text."""

    pad: int
    mask: int | None


@dataclass(frozen=True)
class Readers:
    """The tokenizers of a job."""

    student: TextTokenizer
    by_teacher: Mapping[str, TextTokenizer]
    """By the teacher's reference."""
    lengths: Mapping[str, int]
    """Most tokens of a text, by input key: what all that read it can take."""

    @property
    def input(self) -> TextInput:
        """What the student takes."""
        own = self.student
        return TextInput(
            length=self.lengths[own.input_key], vocabulary=own.vocabulary, pad=own.pad, separator=own.separator
        )

    @property
    def special(self) -> dict[str, Special]:
        """By input key."""
        return {reader.input_key: Special(reader.pad, reader.mask) for reader in self._all}

    @property
    def others(self) -> dict[str, TextTokenizer]:
        """Tokenizers of teachers that don't read as the student does, by input key."""
        return {reader.input_key: reader for reader in self._all if reader.input_key != self.student.input_key}

    @property
    def _all(self) -> list[TextTokenizer]:
        return [self.student, *self.by_teacher.values()]

    def read(self, texts: TextSamples, *, words: bool) -> dict[str, Tensor]:
        """Token ids (N, S) by input key; with `words`, the words of the tokens too, under the key after `WORDS`."""
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
    """Load the teachers' tokenizers from their `folders`, and make the student's as the job asks.

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
    """The tokenizers of a language model and its teachers. One that gives the student's tokens is the student's own,
    even if it knows more.

    Raises UserError (`invalid_teacher`, `invalid_job`), the latter too for what can't be learned from other tokens.
    """
    readers = [
        _stored(folders[teacher.reference], job.teacher_param(index)) for index, teacher in enumerate(job.all_teachers)
    ]
    wanted = options.tokenizer or (TeacherTokenizer() if readers else BytePairs(lowercase=False))
    if isinstance(wanted, BytePairs) and not isinstance(job.student, Pretrained):
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
    """The tokenizer of the model in `folder`; the rules in it are a stranger's, and bounded wherever they work."""
    with reading_tokenizer(folder, param):
        tokenizer = load_tokenizer(folder, param)
    tokenizer.subject = tokenizer_subject(param)
    return tokenizer


def _most(teacher: ModelConfig) -> int:
    """Tokens that a teacher of texts reads at a time."""
    return teacher.input.length if isinstance(teacher.input, TextInput) else MOST


def _require_comparable(job: JobSpec, index: int, reader: TextTokenizer) -> None:
    """Raise UserError for what can't be learned from a teacher with a tokenizer of its own."""
    for problem in other_tokens_problems(job, job.all_teachers[index].name):
        message = f"{problem.param}: {problem.message} (accepted: {problem.accepted})"
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
    if isinstance(job.student, Pretrained):
        return _stored(folders[job.student.reference], f"student.{job.student.source}")
    wanted = options.tokenizer or (TeacherTokenizer() if teachers else WordPiece())
    if not isinstance(wanted, TeacherTokenizer):
        return train_tokenizer(wanted, train)
    if not teachers:
        message = "data.tokenizer: there is no teacher to take it from (accepted: wordpiece or bpe)"
        raise UserError("invalid_job", message, "data.tokenizer")
    return teachers[0]
