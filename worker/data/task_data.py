"""A job's samples once they are read, and what reading them asks the job's task."""

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
"""Of those that are found, told in one message."""


@dataclass(frozen=True)
class TaskData:
    """Samples to train and to evaluate on, and the description that a student of them will have."""

    train: Batch
    eval: Batch
    model: ModelConfig
    notes: list[str]
    """Oddities worth a warning."""
    readers: Readers | None = None
    """How texts become tokens for the student and its teachers; none: there are none."""
    prompts: Prompts | None = None
    """What models write on in training, on the CPU; none: nothing is written."""
    numbers: tuple[Tensor, Tensor] | None = None
    """Of the samples to train and to evaluate on within `data.train`, when both were taken from there: int64, CPU."""
    bytes: int = 0
    """Of text, in UTF-8, that a language model is to predict of the samples to evaluate on; 0: there is none."""
    places: Mapping[str, list[int]] = field(default_factory=dict)
    """By the name of a classifier's teacher: for each class of the job its number among the teacher's outputs."""
    alignment: Mapping[str, dict[str, float]] = field(default_factory=dict)
    """By the input key of a teacher with another tokenizer: the shares of the student's tokens, by split, that it
    has something to say about."""

    @property
    def input_key(self) -> str | None:
        """Which of the inputs the student reads; none: its kind's usual one."""
        return self.readers.student.input_key if self.readers else None

    def input_key_of(self, teacher: str) -> str | None:
        """Which of the inputs the teacher of this reference reads; none: its kind's usual one."""
        return self.readers.by_teacher[teacher].input_key if self.readers else None


class Targets(NamedTuple):
    """The targets of all files of a job."""

    by_file: Mapping[str, Tensor]
    """By the field that names the file, one row for each row of its inputs (see `Batch.targets`)."""
    classes: Classes | None = None
    """Where the targets are about classes."""
    notes: Sequence[str] = ()
    """Oddities worth a warning."""
    numbers: int | None = None
    """Numbers in a row of targets, where the student answers with as many."""

    @classmethod
    def about(cls, classes: Classes, read: Mapping[str, tuple[Tensor, Sequence[str]]]) -> Targets:
        """Targets about classes: of each file, with the notes of its own."""
        notes = [*classes.notes, *(note for _, own in read.values() for note in own)]
        return cls({param: targets for param, (targets, _) in read.items()}, classes, notes)

    def class_fields(self) -> dict[str, Any]:
        """Fields of a `ModelConfig` that describe the classes that these targets are about."""
        assert self.classes is not None  # whoever asks has made them
        return {"classes": self.classes.count, "class_names": self.classes.names}


class AlignedSplit(NamedTuple):
    """The samples of a file, with targets that fit the tokens of its texts."""

    samples: Batch
    notes: Sequence[str] = ()
    """Oddities worth a warning."""


class SampleReading(Protocol):
    """How a task's samples are read: what `load_samples` asks the task."""

    columns: ColumnReader
    reads_words: bool
    """Whether `align` needs to know which word each token belongs to."""

    def arrange(self, samples: Samples, param: str) -> Samples:
        """The samples of the file that `param` names as the rows that models read."""
        ...

    def targets(self, job: JobSpec, teachers: Mapping[str, ModelConfig], samples: Mapping[str, Samples]) -> Targets:
        """Targets by file; `teachers` are described by their references. Raises UserError naming the label."""
        ...

    def align(self, split: Batch, readers: Readers | None, param: str) -> AlignedSplit:
        """The samples of the file that `param` names with targets that fit the tokens of its texts."""
        ...

    def hold_out(self, train: Batch, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Numbers of the samples to train on and of `count` to evaluate on, int64, both ascending."""
        ...

    def answer(
        self,
        job: JobSpec,
        train: Batch,
        targets: Targets,
        teachers: Mapping[str, ModelConfig],
        inherited: ModelConfig | None,
    ) -> dict[str, Any]:
        """Fields of the student's `ModelConfig` that describe its outputs; `inherited` is the model that its weights
        come from."""
        ...

    def label_notes(self, train: Tensor, evaluation: Tensor, model: ModelConfig) -> list[str]:
        """Oddities of the targets to train and to evaluate on, each in one sentence."""
        ...


def references(data: Data) -> dict[str, str]:
    """The files to read, by the field that names them."""
    named = {"data.train": data.train}
    if data.eval is not None:
        named["data.eval"] = data.eval
    elif isinstance(data, HfData) and data.eval_split is not None:
        named["data.eval"] = data.train
    return named


def refuse(problems: list[Problem]) -> None:
    """Raise UserError with the first of the `problems`, if there are any."""
    if problems:
        some = problems[:MOST_PROBLEMS]
        lines = [f"{p.param}: {p.message}" + (f" (accepted: {p.accepted})" if p.accepted else "") for p in some]
        lines += [f"… and {len(problems) - len(some)} more"] if problems[MOST_PROBLEMS:] else []
        room = problems[0].param.split(".")[0]
        code = {"data": "invalid_data", "teacher": "invalid_teacher"}.get(room, "invalid_job")
        raise UserError(code, "; ".join(lines), problems[0].param)
