"""The base of the tasks: what the contract needs to know of each, which no rule, loss or estimate asks by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    """The metric that a student is chosen by."""

    name: str
    higher_is_better: bool
    tie_breaker: str | None = None
    """Decides between equals; lower is better."""
    stand_in: str | None = None
    """Takes its place where the samples to evaluate on do not give it; higher is better in the same way."""

    def of(self, metrics: Mapping[str, float]) -> str:
        """Its name, or that of what stands in for it."""
        return self.name if self.name in metrics or self.stand_in is None else self.stand_in

    def is_better(self, metrics: Mapping[str, float], than: Mapping[str, float]) -> bool:
        """Whether one set of metrics is strictly better than another."""
        return self._rank(metrics) > self._rank(than)

    def _rank(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        value = metrics[self.of(metrics)]
        second = -metrics[self.tie_breaker] if self.tie_breaker else 0.0
        return value if self.higher_is_better else -value, second


class TrainingDefaults(NamedTuple):
    """Values for what a recipe leaves out."""

    reason: str
    """Which student they are for, and their source."""
    optimizer: AdamW
    schedule: Schedule
    epochs: int = 10


class TaskSpec:
    """One task in the contract. A class for each, in a file of its own; one object of it in the registry."""

    name: ClassVar[str]
    reads: ClassVar[tuple[InputKind, ...]]
    """Kinds of sample that a student of it may read."""
    formats: ClassVar[tuple[type[Data], ...]]
    """Formats of data that can hold such samples, in the order in which messages name them."""
    model_types: ClassVar[tuple[str, ...]]
    """Networks of the Transformers library that fit."""
    answers: ClassVar[Answer]
    """What a student computes of a sample."""
    sized_by: ClassVar[Literal["classes", "targets"] | None]
    """Field of a model's description that has the width of its output; None: the vocabulary of a decoder's input has,
    and the model has neither field."""
    per_token: ClassVar[bool] = False
    """Whether a student that answers with classes does so at every token of a text."""
    metrics: ClassVar[Mapping[str, bool]]
    """Metrics that a model is measured by on its own, by name: whether higher is better."""
    main_metric: ClassVar[MainMetric]
    problem_type: ClassVar[str | None] = None
    """The Transformers library's word for what a head of it is asked; none: the library has no word for it."""
    options: ClassVar[frozenset[str]] = frozenset()
    """Paths of the fields of a job that mean something for this task and not for every other."""
    packs_texts: ClassVar[bool] = False
    """Whether texts are packed into sequences one after the other, so that no model may cut anything off."""
    assumed_outputs: ClassVar[int] = 10
    """Width of the output that an estimate takes while only the samples, which nobody has read yet, tell it."""
    label_shape: ClassVar[str] = "(N,) integers"
    """Array of labels in a NumPy archive, for messages."""
    fresh: ClassVar[TrainingDefaults | None] = None
    """Training defaults of a student with random weights; None: those of the kind of its network."""
    tuned: ClassVar[TrainingDefaults | None] = None
    """The same of a transformer that goes on from trained weights."""
    shrunk: ClassVar[TrainingDefaults | None] = None
    """The same of a transformer made of parts of its teacher."""

    @property
    def chooses(self) -> bool:
        """Whether the output is logits of a softmax, over classes or tokens."""
        return self.answers in ("classes", "tokens")

    @property
    def gives_logits(self) -> bool:
        """Whether the output is logits: of that softmax, or of a sigmoid for each label."""
        return self.chooses or self.answers == "labels"

    def fits(self, option: type[TaskOption]) -> bool:
        """Whether a loss, optimizer, augmentation or method is for this task."""
        return self.answers in option.answers and not set(self.reads).isdisjoint(option.reads)

    def why_unfit(self, option: type[TaskOption]) -> str:
        """Why one that works with such inputs and outputs does not fit all the same; empty: it does, or they are why
        it does not."""
        return ""

    def refusal(self, option: type[TaskOption]) -> str:
        """The message about one that does not fit."""
        found = f"{option.model_fields['kind'].default} is not for {self.name}"
        return f"{found}: {why}" if (why := self.why_unfit(option)) else found

    def column_problems(self, data: Table) -> Iterator[Problem]:
        """What is wrong with the columns that a job names."""
        if not data.label_columns:
            yield Problem("data.label_columns", f"is missing, and {self.name} needs it", "the columns to answer with")

    def has_label_shape(self, labels: ArrayFacts) -> bool:
        """Whether an array of labels in a NumPy archive is as `label_shape` says."""
        return len(labels.shape) == 1 and labels.dtype[0] in "iu"

    def targets_in(self, labels: ArrayFacts) -> int | None:
        """Numbers for each sample in such an array; None: it holds classes."""
        return None

    def classes_in(self, labels: ArrayFacts) -> int | None:
        """How many classes such an array is about; None: its shape does not tell."""
        return None

    def target_bytes(self, sample: Input, outputs: int) -> int:
        """Memory of the targets of one sample, for a student with so many outputs."""
        return NUMBER_BYTES * outputs if self.answers in ("labels", "numbers") else CLASS_BYTES
