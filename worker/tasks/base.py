"""Interface of tasks: one object per task, by which all code outside this package uses it.

N rows (samples, or texts of pairs), C outputs of a model for each of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from app.recipe.job import EvaluationSpec, JobSpec
from app.recipe.students.model import ModelConfig
from app.recipe.tasks import TASKS
from app.recipe.tasks.base import MainMetric
from worker.data.batches import Batch
from worker.data.running_text import PackingDir
from worker.data.task_data import TaskData
from worker.data.tokens import TextTokenizer
from worker.losses.objective import Objective
from worker.students.model import Model
from worker.tasks.card import TaskCard

Call = Callable[[Tensor], Tensor]
"""Function from raw samples (N, ...) to outputs (N, C), or (N, S, C) per token, floating."""
Metrics = dict[str, float]
Figures = dict[str, Any]
CountFlops = Callable[[Callable[[Tensor], object], Tensor], int]
"""Floating-point operations of a call on a sample."""


class ClassRow(NamedTuple):
    """One class in the table of classes."""

    number: int
    samples: int
    accuracy: float | None
    """Share of its samples that were classified correctly; none if it has no sample."""


class Evaluation(NamedTuple):
    """Metrics of a model's outputs."""

    metrics: Metrics
    classes: list[ClassRow] | None = None
    """Table of classes, for a classifier with not too many."""
    figures: Figures = {}
    """The task's own entries of the report."""


class HeldOut(NamedTuple):
    """Samples to evaluate on."""

    samples: Batch
    bytes: int = 0
    """Bytes in UTF-8 of the text that a language model is to predict; 0: unknown, or there is no text."""
    class_names: Sequence[str] | None = None
    """Names of the classes of their targets; none: there are no names."""


class Predictions(NamedTuple):
    """Outputs of a model for held-out samples, and their metrics."""

    outputs: Tensor
    """(n, C) float32 on the CPU: for all samples, or for the first rows if all would be too many. The rows of a sample
    with several, such as its words, are adjacent."""
    evaluation: Evaluation
    """Over all samples."""


class NonFiniteOutputs(ArithmeticError):
    """A model's outputs are not finite; the message names them."""


class TaskEvaluator(Protocol):
    """Evaluates models on a job's held-out samples, in comparison with its teachers."""

    def evaluate(self, model: Model) -> Predictions:
        """Predictions in evaluation mode and full float32, compared with the teachers'. Raises NonFiniteOutputs."""
        ...

    def evaluate_alone(self, model: Model) -> Metrics:
        """Metrics of `model` that need no teacher."""
        ...

    def evaluate_graph(self, call: Call, model: Model) -> Predictions:
        """Predictions of a graph on the CPU that was exported from `model`; they need not be finite."""
        ...

    def beside(self, teachers: Mapping[str, Model]) -> TaskEvaluator:
        """An evaluator for the report, which compares with the teachers as stored in their files."""
        ...

    @property
    def teacher_outputs(self) -> Tensor | None:
        """Outputs (N, C) float32 of the teachers' mixture, on the CPU; none: no teacher, or too many outputs to
        store."""
        ...

    def teacher_evaluation(self) -> Evaluation | None:
        """Evaluation of the teachers' mixture; none if its outputs are not stored."""
        ...


class TeacherExaminer(Protocol):
    """Measures teachers on held-out samples before training."""

    samples: int
    """Number of held-out samples, or tokens, that are used."""
    unit: str
    """Their name, in the plural."""

    def measure(self, model: Model) -> tuple[Metrics, Tensor | None]:
        """Metrics of the task, and the outputs (N, C) float32 on the CPU if they are stored."""
        ...

    def baseline(self, model: Model) -> tuple[Metrics, str]:
        """Metrics of constant outputs, and a description of these outputs."""
        ...

    def oddities(self, outputs: Tensor | None) -> Iterator[str]:
        """Peculiarities of a teacher's outputs (N, C) float32, as sentences that continue from its name."""
        ...


class ReportInputs(NamedTuple):
    """Inputs of a task's own part of the report."""

    job: JobSpec
    samples: Batch
    """Held-out samples."""
    student: Model
    """The student as loaded from its exported files."""
    teachers: Mapping[str, Model]
    """Teachers by name."""
    tokenizer: TextTokenizer | None
    """The student's tokenizer; none: it reads no text."""
    tokenizers: Mapping[str, TextTokenizer]
    """Tokenizers of teachers that differ from the student's, by the teachers' names."""
    alignment: Mapping[str, Any]
    """Shares of the student's tokens that are aligned with those of these teachers, by the teachers' names."""


class Task(ABC):
    """One task: its targets, objective, evaluation, and how its models are exported and described."""

    name: str
    """Name of the task in a job."""
    objective: ClassVar[type[Objective]] = Objective
    """Class of the weighted sum of losses."""
    card: TaskCard
    """Texts of the model card."""
    predicts_tokens: ClassVar[bool] = False
    """Whether models predict the next token at every position, and return hidden states in place of logits."""
    moves_points: ClassVar[bool] = False
    """Whether targets are points of an image, which move with it under augmentation."""

    @property
    def per_token(self) -> bool:
        """Whether models return logits of classes at every token (B, S, C)."""
        return TASKS[self.name].per_token

    @property
    def main_metric(self) -> MainMetric:
        """The metric by which students are compared."""
        return TASKS[self.name].main_metric

    @property
    def metrics(self) -> Mapping[str, bool]:
        """Metrics that need no teacher, by name: whether higher is better."""
        return TASKS[self.name].metrics

    @abstractmethod
    def load(
        self,
        job: JobSpec,
        inputs: Mapping[str, Path],
        teachers: Mapping[str, ModelConfig],
        seed: int,
        packing: PackingDir | None = None,
    ) -> TaskData:
        """Read and check the data of `job`.

        `inputs` maps its references to files, and those of teachers to folders; `teachers` has their configs by
        reference; `seed` draws the held-out samples; texts of a language model are packed in `packing`. Raises
        UserError naming the field, the row or index, and the value.
        """

    @abstractmethod
    def evaluator(
        self,
        job: JobSpec,
        held_out: HeldOut,
        live: Mapping[str, Callable[[], Model]],
        stored: Mapping[str, Callable[[], Model]],
        computed: Mapping[str, Tensor],
    ) -> TaskEvaluator:
        """An evaluator that compares with the teachers, by name: those used in training (`live`), or as stored in their
        files (`stored`). `computed` has outputs (N, C) float32 for all samples, on the CPU, of some of the latter."""

    @abstractmethod
    def examiner(self, job: JobSpec, data: TaskData, seed: int, *, whole: bool) -> TeacherExaminer:
        """An examiner of teachers on the held-out samples: all of them if `whole`, else a subset drawn by `seed`."""

    @abstractmethod
    def sample_outputs(self, model: Model, held_out: Batch, most: int) -> Tensor:
        """Outputs (n, C) float32 on the CPU for at most `most` held-out samples, or tokens of them."""

    @abstractmethod
    def likeness(self, outputs: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """Scalars, float64 on the CPU, that measure the similarity of one model's outputs (N, C) to another's."""

    @abstractmethod
    def tolerances(
        self, outputs: Tensor, targets: Tensor, options: EvaluationSpec, allowed: float
    ) -> Iterator[tuple[str, float]]:
        """Metrics that an exported file must have in common with the live model, and how much each may differ if no
        output differs by more than `allowed`. `outputs` (n, C) float32 are the live model's; `targets` are those of all
        samples (see `Batch.targets`)."""

    def same_choice(self, outputs: Tensor, live: Tensor) -> Tensor | None:
        """Share of decisions, a float64 scalar, in which an inexact file's outputs (n, C) float32 agree with the live
        model's; none if outputs are no decisions."""
        return None

    def timed_call(self, model: Model) -> Call:
        """The function whose latency is measured for the model."""
        return model

    def flops(self, model: Model, sample: Tensor, count: CountFlops) -> int:
        """Floating-point operations of `model` for one raw sample (1, ...) of its input dtype."""
        return count(model, sample)

    def graph_samples(self, held_out: Batch, batch: int) -> Batch:
        """Samples for timing an exported graph, at most `batch`."""
        return held_out.between(0, batch)

    def report_figures(self, inputs: ReportInputs) -> Figures:
        """The task's own entries of the report."""
        return {}


def weights_of(job: JobSpec) -> Sequence[float]:
    """Relative weights of the teachers, in their order."""
    return [share.weight for share in job.teacher_shares]
