"""A job's samples after reading, and the interface of the task for reading them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from app.recipe.data.sources import Data, HfData
from app.recipe.job import JobSpec
from app.recipe.problem import Problem
from app.recipe.students.model import ModelConfig
from worker.data.batches import Batch
from worker.data.formats.column_readers import ColumnReader
from worker.data.formats.columns import Samples
from worker.data.labels import Classes
from worker.data.prompts import Prompts
from worker.data.readers import Readers
from worker.errors import UserError

MOST_PROBLEMS = 20
"""Most problems in one message."""


@dataclass(frozen=True)
class TaskData:
    """Samples for training and evaluation, and the student's description."""

    train: Batch
    eval: Batch
    model: ModelConfig
    notes: list[str]
    """Warnings."""
    readers: Readers | None = None
    """Tokenizers of the student and its teachers; none: there are no texts."""
    kept_back: Batch | None = None
    """Samples of `data.train` that the training method has kept back for itself; none: it has not."""
    prompts: Prompts | None = None
    """Prompts for generation during training, on the CPU; none: there is no generation."""
    numbers: tuple[Tensor, Tensor] | None = None
    """Indices in `data.train` of the training and evaluation samples, if both are from there: (N,) and (M,) int64, on
    the CPU."""
    bytes: int = 0
    """Bytes, in UTF-8, of the text that a language model is to predict in the evaluation samples; 0: no text."""
    places: Mapping[str, list[int]] = field(default_factory=dict)
    """By the name of a classifier's teacher: for each class of the job its number among the teacher's outputs."""
    alignment: Mapping[str, dict[str, float]] = field(default_factory=dict)
    """By the input key of a teacher with another tokenizer: the shares of the student's tokens, by split, for which
    there is a teacher prediction."""
    label_tokens: Tensor | None = None
    """Token ids (C, T) int64 of the texts of the classes, on the CPU, for a student that encodes them; none: it does
    not."""
    split: Mapping[str, Any] = field(default_factory=dict)
    """Entries of the report about the division of the samples."""
    further: Mapping[str, Batch] = field(default_factory=dict)
    """Samples of the files of diagnostics, without labels, by the field that names each."""

    @property
    def input_key(self) -> str | None:
        """Key of the student's inputs; none: the default of its kind."""
        return self.readers.student.input_key if self.readers else None

    def input_key_of(self, teacher: str) -> str | None:
        """Key of the inputs of the teacher with this reference; none: the default of its kind."""
        return self.readers.by_teacher[teacher].input_key if self.readers else None


class Targets(NamedTuple):
    """The targets of all files of a job."""

    by_file: Mapping[str, Tensor]
    """By the field that names the file, one row for each row of its inputs (see `Batch.targets`)."""
    classes: Classes | None = None
    """Set if the targets are about classes."""
    notes: Sequence[str] = ()
    """Warnings."""
    numbers: int | None = None
    """Numbers in a row of targets, if they are the student's outputs."""
    names: Sequence[str] | None = None
    """Names of labels that are no outputs."""

    @classmethod
    def about(cls, classes: Classes, read: Mapping[str, tuple[Tensor, Sequence[str]]]) -> Targets:
        """Targets about classes, from targets (N, ...) and notes of each file."""
        notes = [*classes.notes, *(note for _, its_notes in read.values() for note in its_notes)]
        return cls({param: targets for param, (targets, _) in read.items()}, classes, notes)

    def class_fields(self) -> dict[str, Any]:
        """Fields of a `ModelConfig` that describe the classes that these targets are about."""
        assert self.classes is not None  # the caller has set them
        return {"classes": self.classes.count, "class_names": self.classes.names}


class Halves(NamedTuple):
    """Training and evaluation samples."""

    train: Batch
    eval: Batch
    figures: Mapping[str, Any] = {}
    """Entries of the report about the division."""


class AlignedSplit(NamedTuple):
    """The samples of a file, with targets aligned with the tokens of its texts."""

    samples: Batch
    notes: Sequence[str] = ()
    """Warnings."""


class SampleReading(Protocol):
    """A task's part in reading samples, for `load_samples`."""

    columns: ColumnReader
    reads_words: bool
    """Whether `align` needs the word numbers of the tokens."""

    def arrange(self, samples: Samples, param: str) -> Samples:
        """The samples of the file that `param` names, as rows for the models."""
        ...

    def gathered(self, samples: Mapping[str, Samples]) -> Mapping[str, Samples]:
        """The arranged samples of all files, by the field that names each, as those to train and to evaluate on."""
        ...

    def targets(self, job: JobSpec, teachers: Mapping[str, ModelConfig], samples: Mapping[str, Samples]) -> Targets:
        """Targets by file; `teachers` are described by their references. Raises UserError naming the label."""
        ...

    def align(self, split: Batch, readers: Readers | None, param: str) -> AlignedSplit:
        """The samples of the file that `param` names, with targets aligned with the tokens of its texts."""
        ...

    def hold_out(self, train: Batch, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Indices of the training samples, (N,) int64, and of `count` for evaluation, (count,) int64, both
        ascending."""
        ...

    def split(self, train: Batch, data: Data, seed: int) -> tuple[Tensor, Tensor]:
        """Indices of the samples of `data.train` to train on, (N,) int64, and to evaluate on, (M,) int64, both
        ascending. Raises UserError."""
        ...

    def settle(self, train: Batch, evaluation: Batch, targets: Targets) -> Halves:
        """Both halves, with targets as training and evaluation use them. Raises UserError."""
        ...

    def answer(
        self,
        job: JobSpec,
        train: Batch,
        targets: Targets,
        teachers: Mapping[str, ModelConfig],
        inherited: ModelConfig | None,
    ) -> dict[str, Any]:
        """Fields of the student's `ModelConfig` that describe its outputs; `inherited` is the model from which it gets
        its weights."""
        ...

    def label_notes(self, train: Tensor, evaluation: Tensor, model: ModelConfig) -> list[str]:
        """Warnings about the targets (N, ...) of the training and evaluation samples, each in one sentence."""
        ...


def references(data: Data) -> dict[str, str]:
    """The files to read, by the field that names them."""
    named = data.files
    if data.eval is None and isinstance(data, HfData) and data.eval_split is not None:
        named["data.eval"] = data.train
    return named


def refuse(problems: list[Problem]) -> None:
    """Raise UserError with the first of the `problems`, if there are any."""
    if problems:
        some = problems[:MOST_PROBLEMS]
        lines = [f"{p.param}: {p.message}" + (f" (accepted: {p.accepted})" if p.accepted else "") for p in some]
        lines += [f"… and {len(problems) - len(some)} more"] if problems[MOST_PROBLEMS:] else []
        section = problems[0].param.split(".")[0]
        code = {"data": "invalid_data", "teacher": "invalid_teacher"}.get(section, "invalid_job")
        raise UserError(code, "; ".join(lines), problems[0].param)
