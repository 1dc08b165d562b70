"""What a task is to the training side: one object per task, which all code outside this package asks.

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
"""From raw samples to outputs."""
Metrics = dict[str, float]
Figures = dict[str, Any]
CountFlops = Callable[[Callable[[Tensor], object], Tensor], int]
"""Floating-point operations of a call on a sample."""


class ClassRow(NamedTuple):
    """One class in the table of classes."""

    number: int
    samples: int
    accuracy: float | None
    """Share of its samples that were recognised; none where it has no sample."""


class Evaluation(NamedTuple):
    """Metrics of a model's outputs."""

    metrics: Metrics
    classes: list[ClassRow] | None = None
    """For a classifier of not too many classes."""
    figures: Figures = {}
    """The task's own entries of the report."""


class HeldOut(NamedTuple):
    """Samples to evaluate on."""

    samples: Batch
    bytes: int = 0
    """Of text, in UTF-8, that a language model is to predict of them; 0: not known, or there is none."""
    class_names: Sequence[str] | None = None
    """Names of the classes that their targets are about, where they have names."""


class Predictions(NamedTuple):
    """Outputs of a model for held-out samples, and their metrics."""

    outputs: Tensor
    """(n, C) float32 on the CPU: of all samples, or of the first rows where those of all would be too many. Where a
    sample has several rows, such as its words, they follow each other."""
    evaluation: Evaluation
    """Over all samples."""


class NonFiniteOutputs(ArithmeticError):
    """A model's outputs are not finite; the text names them."""


class TaskEvaluator(Protocol):
    """Evaluates models on a job's held-out samples, beside its teachers."""

    def evaluate(self, model: Model) -> Predictions:
        """Predictions in evaluation mode and full float32, compared with the teachers'. Raises NonFiniteOutputs."""
        ...

    def evaluate_alone(self, model: Model) -> Metrics:
        """The metrics that `model` is measured by on its own."""
        ...

    def evaluate_graph(self, call: Call, model: Model) -> Predictions:
        """Predictions of a graph on the CPU that was exported from `model`; they need not be finite."""
        ...

    def beside(self, teachers: Mapping[str, Model]) -> TaskEvaluator:
        """One for the report, beside the teachers as their files have them."""
        ...

    @property
    def teacher_outputs(self) -> Tensor | None:
        """Outputs (N, C) of the teachers' mixture, on the CPU; none: no teacher, or more outputs than can be kept."""
        ...

    def teacher_evaluation(self) -> Evaluation | None:
        """Evaluation of the teachers' mixture; none where its outputs are not kept."""
        ...


class TeacherExaminer(Protocol):
    """Measures teachers on held-out samples before training."""

    samples: int
    """Held-out samples, or tokens, that are asked about."""
    unit: str
    """Their name, in the plural."""

    def measure(self, model: Model) -> tuple[Metrics, Tensor | None]:
        """Metrics of the task, and the outputs (N, C) where they are kept."""
        ...

    def baseline(self, model: Model) -> tuple[Metrics, str]:
        """Metrics of outputs that do not depend on the sample, and which outputs those are."""
        ...

    def oddities(self, outputs: Tensor | None) -> Iterator[str]:
        """Oddities of a teacher's outputs, in sentences that go on from its name."""
        ...


class ReportInputs(NamedTuple):
    """What a task's own part of the report is made of."""

    job: JobSpec
    samples: Batch
    """Held out."""
    student: Model
    """As its exported files have it."""
    teachers: Mapping[str, Model]
    """By their names."""
    tokenizer: TextTokenizer | None
    """The student's."""
    tokenizers: Mapping[str, TextTokenizer]
    """Of teachers with other tokens, by their names."""
    alignment: Mapping[str, Any]
    """Shares of the student's tokens that those have counterparts of, by their names."""


class Task(ABC):
    """One task: its targets, objective, evaluation, and how its models are exported and described."""

    name: str
    """As jobs give it."""
    objective: ClassVar[type[Objective]] = Objective
    """Class of the weighted sum of losses."""
    card: TaskCard
    """What a model card says of its models."""
    predicts_tokens: ClassVar[bool] = False
    """Whether models predict the next token at every position, and give hidden states in place of logits."""
    moves_points: ClassVar[bool] = False
    """Whether targets are points of an image, which move with it under augmentation."""

    @property
    def per_token(self) -> bool:
        """Whether models give logits of classes at every token (B, S, C)."""
        return TASKS[self.name].per_token

    @property
    def main_metric(self) -> MainMetric:
        """The metric that a student is chosen by."""
        return TASKS[self.name].main_metric

    @property
    def metrics(self) -> Mapping[str, bool]:
        """Metrics that a model is measured by on its own, by name: whether higher is better."""
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

        `inputs` maps its references to files, and those of teachers to folders; `teachers` holds their descriptions by
        reference; `seed` decides what is held out; texts of a language model are packed in `packing`. Raises UserError
        naming the field, the row or index, and the value.
        """

    @abstractmethod
    def evaluator(
        self,
        job: JobSpec,
        held_out: HeldOut,
        teaching: Mapping[str, Callable[[], Model]],
        stored: Mapping[str, Callable[[], Model]],
        known: Mapping[str, Tensor],
    ) -> TaskEvaluator:
        """Evaluates beside the teachers, by their names: as they are while they are `teaching`, or as their files have
        them. `known` outputs (N, C), on the CPU, were computed for all samples before."""

    @abstractmethod
    def examiner(self, job: JobSpec, data: TaskData, seed: int, *, whole: bool) -> TeacherExaminer:
        """Measures teachers on the held-out samples: all of them if `whole`, else a part that `seed` decides."""

    @abstractmethod
    def sample_outputs(self, model: Model, held_out: Batch, most: int) -> Tensor:
        """Outputs (n, C) float32 on the CPU for at most `most` held-out samples, or tokens of them."""

    @abstractmethod
    def likeness(self, outputs: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """Scalars that tell how like one model's outputs (N, C) are to another's."""

    @abstractmethod
    def tolerances(
        self, outputs: Tensor, targets: Tensor, options: EvaluationSpec, allowed: float
    ) -> Iterator[tuple[str, float]]:
        """Metrics of an exported file that must be the live model's, and by how much each may differ where no output
        differs by more than `allowed`. `outputs` (n, C) are the live model's, `targets` those of all samples."""

    def same_choice(self, outputs: Tensor, live: Tensor) -> Tensor | None:
        """Share (scalar) of decisions in which an inexact file's outputs (n, C) agree with the live model's; none
        where outputs are no decisions."""
        return None

    def timed_call(self, model: Model) -> Call:
        """The call whose latency is the model's."""
        return model

    def flops(self, model: Model, sample: Tensor, count: CountFlops) -> int:
        """Operations of `model` for one raw sample (1, ...)."""
        return count(model, sample)

    def graph_samples(self, held_out: Batch, batch: int) -> Batch:
        """Samples that an exported graph is timed with, `batch` at most."""
        return held_out.between(0, batch)

    def report_figures(self, inputs: ReportInputs) -> Figures:
        """The task's own entries of the report."""
        return {}


def weights_of(job: JobSpec) -> Sequence[float]:
    """Relative weights of the teachers, in their order."""
    return [teacher.weight for teacher in job.all_teachers]
