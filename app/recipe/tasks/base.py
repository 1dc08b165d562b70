"""The base of the tasks: their properties for rules, losses and estimates, which do not depend on names of tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Literal, NamedTuple

from app.recipe.base import Answer, InputKind, TaskOption
from app.recipe.data.facts import ArrayFacts
from app.recipe.data.sources import Data, Table
from app.recipe.optimizers import AdamW, Schedule
from app.recipe.problem import Problem
from app.recipe.students.inputs import Input

CLASS_BYTES, NUMBER_BYTES = 8, 4
"""Memory of a class, as int64, and of a number to learn, as float32."""


class MainMetric(NamedTuple):
    """The metric by which a student is chosen."""

    name: str
    higher_is_better: bool
    tie_breaker: str | None = None
    """Decides between equal values; lower is better."""
    stand_in: str | None = None
    """Replaces it if the evaluation samples do not have it; with the same direction."""

    def of(self, metrics: Mapping[str, float]) -> str:
        """Its name, or that of the metric that replaces it."""
        return self.name if self.name in metrics or self.stand_in is None else self.stand_in

    def best(self, values: Iterable[float]) -> float:
        """The best of several values; raises ValueError for none."""
        return (max if self.higher_is_better else min)(values)

    def ratio(self, student: float, teacher: float) -> float | None:
        """Value of the student as a share of its teacher's, for an error the inverse, so that more is better; None
        if there is no such share: of a correlation that is not positive, or of an error of 0."""
        part, whole = (student, teacher) if self.higher_is_better else (teacher, student)
        return part / whole if part >= 0.0 and whole > 0.0 and math.isfinite(part / whole) else None

    def is_better(self, metrics: Mapping[str, float], than: Mapping[str, float]) -> bool:
        """Whether one set of metrics is strictly better than another."""
        return self._rank(metrics) > self._rank(than)

    def _rank(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        value = metrics[self.of(metrics)]
        second = -metrics[self.tie_breaker] if self.tie_breaker else 0.0
        return value if self.higher_is_better else -value, second


class TrainingDefaults(NamedTuple):
    """Values for missing fields of a recipe."""

    reason: str
    """The students that they are for, and their source."""
    optimizer: AdamW
    schedule: Schedule
    epochs: int = 10


class TaskSpec:
    """One task in the contract. Each has a subclass in a separate file; the registry has one object of it."""

    name: ClassVar[str]
    reads: ClassVar[tuple[InputKind, ...]]
    """Kinds of samples of its students."""
    formats: ClassVar[tuple[type[Data], ...]]
    """Formats of data with such samples, in their order in messages."""
    model_types: ClassVar[tuple[str, ...]]
    """Model types of the Transformers library that fit."""
    answers: ClassVar[Answer]
    """Kind of a student's output."""
    sized_by: ClassVar[Literal["classes", "targets"] | None]
    """Field of a model's description with the number of its outputs; None: it is the vocabulary of a decoder's input,
    and the model has neither field."""
    needs_labels: ClassVar[bool] = True
    """Whether every file has labels, of a format that can be without."""
    takes_teachers: ClassVar[bool] = True
    """Whether a job may have teachers; else the student holds the model that it learns from."""
    reconstructs: ClassVar[bool] = False
    """Whether its students, and no others, reconstruct the features of an encoder within them."""
    compares_views: ClassVar[bool] = False
    """Whether evaluation compares two augmented views of a sample, so that data is augmented."""
    per_token: ClassVar[bool] = False
    """Whether a student with classes as output has them at every token of a text."""
    metrics: ClassVar[Mapping[str, bool]]
    """Metrics of a model without a teacher, by name: whether higher is better."""
    main_metric: ClassVar[MainMetric]
    problem_type: ClassVar[str | None] = None
    """The Transformers library's problem type of its head; none: the library has none for it."""
    options: ClassVar[frozenset[str]] = frozenset()
    """Paths of fields of a job that are for this task and not for every other."""
    packs_texts: ClassVar[bool] = False
    """Whether texts are packed into sequences, which no model may truncate."""
    assumed_outputs: ClassVar[int] = 10
    """Number of outputs in estimates before the samples were read."""
    label_shape: ClassVar[str] = "(N,) integers"
    """Shape of the array of labels in a NumPy archive, for messages."""
    fresh: ClassVar[TrainingDefaults | None] = None
    """Training defaults of a student with random weights; None: by the kind of its network."""
    tuned: ClassVar[TrainingDefaults | None] = None
    """Training defaults of a pretrained transformer."""
    shrunk: ClassVar[TrainingDefaults | None] = None
    """Training defaults of a transformer shrunk from its teacher."""

    @property
    def chooses(self) -> bool:
        """Whether the output is logits of a softmax, over classes or tokens."""
        return self.answers in ("classes", "tokens")

    @property
    def gives_logits(self) -> bool:
        """Whether the output is logits: of a softmax, or of a sigmoid for each label."""
        return self.chooses or self.answers == "labels"

    @property
    def pools_tokens(self) -> bool:
        """Whether the output is pooled from the tokens of a text, so that its width is the network's."""
        return self.answers == "vectors" and self.reads == ("texts",)

    def answers_alike(self, other: TaskSpec) -> bool:
        """Whether outputs of the models of `other` are of the same kind as this task's: its own, or vectors of the same
        kind of samples."""
        vectors = self.answers == other.answers == "vectors" and self.reads == other.reads
        return self.name == other.name or vectors

    def fits(self, option: type[TaskOption]) -> bool:
        """Whether a loss, optimizer, augmentation or method is for this task."""
        labels_fit = not (option.without_labels and self.needs_labels)
        return labels_fit and self.answers in option.answers and not set(self.reads).isdisjoint(option.reads)

    def why_unfit(self, option: type[TaskOption]) -> str:
        """Why one that works with such inputs and outputs does not fit all the same; empty: it does, or they are why
        it does not."""
        return ""

    def refusal(self, option: type[TaskOption]) -> str:
        """The message about one that does not fit."""
        found = f"{option.model_fields['kind'].default} is not for {self.name}"
        return f"{found}: {why}" if (why := self.why_unfit(option)) else found

    def rows_per_sample(self, data: Data) -> int:
        """Vectors that a student computes of a sample to train on."""
        return 1

    def loss_problems(self, data: Data, term: TaskOption, path: str) -> Iterator[Problem]:
        """Problems of a loss, which the job lists at `path`, with the kind of samples."""
        yield from ()

    def column_problems(self, data: Table) -> Iterator[Problem]:
        """Problems of the columns that a job names."""
        if not data.label_columns:
            yield Problem("data.label_columns", f"is missing, and {self.name} needs it", "the columns to answer with")

    def has_label_shape(self, labels: ArrayFacts) -> bool:
        """Whether an array of labels in a NumPy archive fits `label_shape`."""
        return len(labels.shape) == 1 and labels.dtype[0] in "iu"

    def targets_in(self, labels: ArrayFacts) -> int | None:
        """Target numbers of each sample in such an array; None: it has classes."""
        return None

    def classes_in(self, labels: ArrayFacts) -> int | None:
        """How many classes such an array is about; None: its shape does not tell."""
        return None

    def target_bytes(self, sample: Input, outputs: int) -> int:
        """Memory of the targets of one sample, for a student with so many outputs."""
        return NUMBER_BYTES * outputs if self.answers in ("labels", "numbers") else CLASS_BYTES
