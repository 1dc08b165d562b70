"""Tasks whose models return one row of outputs for each row of inputs; outputs of all held-out samples are stored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.recipe.data.sources import Data
from app.recipe.job import EvaluationSpec, JobSpec
from app.recipe.plan import split_counts
from app.recipe.students.model import ModelConfig
from worker.data.batches import Batch
from worker.data.formats.column_readers import ColumnReader
from worker.data.formats.columns import Samples
from worker.data.holdout import hold_out_any
from worker.data.load import load_samples
from worker.data.randomness import generator
from worker.data.readers import Readers
from worker.data.running_text import PackingDir
from worker.data.task_data import AlignedSplit, Halves, Targets, TaskData
from worker.students.model import Model
from worker.tasks.base import (
    Call,
    Evaluation,
    HeldOut,
    Metrics,
    NonFiniteOutputs,
    Predictions,
    Task,
    TeacherExaminer,
    weights_of,
)
from worker.tasks.prediction import evaluating, mean_outputs, predict, predict_with

CHECKED = 1024
"""Held-out samples on which a teacher is measured, if not on all; drawn from the seed."""


class SampleTask(Task):
    """A task that reads samples by a `ColumnReader`, and evaluates all outputs at once."""

    columns: ColumnReader
    """Reads the columns of its files."""
    reads_words: bool = False
    """Whether `align` needs the word of each token."""

    def load(
        self,
        job: JobSpec,
        inputs: Mapping[str, Path],
        teachers: Mapping[str, ModelConfig],
        seed: int,
        packing: PackingDir | None = None,
    ) -> TaskData:
        return load_samples(self, job, inputs, teachers, seed)

    def arrange(self, samples: Samples, param: str) -> Samples:
        """The samples of the file of the field `param`, as the rows that models read."""
        return samples

    def gathered(self, samples: Mapping[str, Samples]) -> Mapping[str, Samples]:
        """The arranged samples of all files, by field, as those to train and to evaluate on."""
        return samples

    @abstractmethod
    def targets(self, job: JobSpec, teachers: Mapping[str, ModelConfig], samples: Mapping[str, Samples]) -> Targets:
        """Targets by file (see `Batch.targets`); `teachers` has configs by reference. Raises UserError naming the
        label."""

    def align(self, split: Batch, readers: Readers | None, param: str) -> AlignedSplit:
        """The samples of the file of the field `param`, with targets aligned to the tokens of its texts."""
        return AlignedSplit(split)

    def hold_out(self, train: Batch, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Numbers of the samples to train on (n,) and of `count` to evaluate on, int64, both ascending."""
        return hold_out_any(train.samples, count, seed)

    def split(self, train: Batch, data: Data, seed: int) -> tuple[Tensor, Tensor]:
        """Numbers of the samples to train and to evaluate on, if both are of `data.train`, int64, both ascending.
        Raises UserError."""
        _, count = split_counts(data, train.samples)
        return self.hold_out(train, count, seed)

    def settle(self, train: Batch, evaluation: Batch, targets: Targets) -> Halves:
        """Both halves, with targets as training and evaluation use them. Raises UserError."""
        return Halves(train, evaluation)

    @abstractmethod
    def answer(
        self,
        job: JobSpec,
        train: Batch,
        targets: Targets,
        teachers: Mapping[str, ModelConfig],
        inherited: ModelConfig | None,
    ) -> dict[str, Any]:
        """Fields of the student's `ModelConfig` that describe its outputs; `inherited` is the config of the model that
        its weights come from."""

    def label_notes(self, train: Tensor, evaluation: Tensor, model: ModelConfig) -> list[str]:
        """Peculiarities of the targets (see `Batch.targets`) to train and to evaluate on, each in one sentence."""
        return []

    @abstractmethod
    def evaluate(
        self, outputs: Tensor, targets: Tensor, options: EvaluationSpec, teacher: Tensor | None = None
    ) -> Evaluation:
        """Metrics of `outputs` (N, C) float32 against `targets` (see `Batch.targets`), and in comparison with the
        teacher's outputs (N, C) float32; computed in float64 on the CPU."""

    def evaluate_as(
        self,
        names: Sequence[str] | None,
        outputs: Tensor,
        targets: Tensor,
        options: EvaluationSpec,
        teacher: Tensor | None = None,
    ) -> Evaluation:
        """`evaluate` for outputs (N, C) float32 of classes with these names; none: they have no names, or there are no
        classes."""
        return self.evaluate(outputs, targets, options, teacher)

    def outputs_of(self, call: Call, samples: Batch, input_key: str) -> Tensor:
        """Outputs (n, C) float32 on the CPU of any function of raw samples, one row for each valid target."""
        return predict_with(call, samples.inputs[input_key])

    def mixture(self, outputs: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Outputs (N, C) float32 of the mixture of several teachers' outputs (N, C), by their relative weights."""
        return mean_outputs(outputs, weights)

    @abstractmethod
    def baseline(self, job: JobSpec, data: TaskData, held_out: Batch) -> tuple[Metrics, str]:
        """Metrics on `held_out` of constant outputs, and a description of these outputs."""

    def oddities(self, outputs: Tensor, targets: Tensor, model: ModelConfig) -> Iterator[str]:
        """Peculiarities of a teacher's outputs (N, C) float32 for a student like `model`, as sentences that continue
        from the teacher's name."""
        yield from ()

    def evaluator(
        self,
        job: JobSpec,
        held_out: HeldOut,
        live: Mapping[str, Callable[[], Model]],
        stored: Mapping[str, Callable[[], Model]],
        computed: Mapping[str, Tensor],
    ) -> SampleEvaluator:
        return SampleEvaluator(self, job, held_out, stored, computed)

    def examiner(self, job: JobSpec, data: TaskData, seed: int, *, whole: bool) -> TeacherExaminer:
        return SampleExaminer(self, job, data, seed, whole=whole)

    def sample_outputs(self, model: Model, held_out: Batch, most: int) -> Tensor:
        """Outputs (n, C) float32 on the CPU."""
        return predict(model, held_out.inputs[model.input_key][:most])


class SampleEvaluator:
    """Evaluates models on held-out samples; the outputs of the stored teachers are computed once, but during training
    those of one that learns are computed for every evaluation."""

    def __init__(
        self,
        task: SampleTask,
        job: JobSpec,
        held_out: HeldOut,
        teachers: Mapping[str, Callable[[], Model]],
        computed: Mapping[str, Tensor],
    ) -> None:
        """`computed` has outputs (N, C) float32 for all samples, on the CPU, of some teachers, by name."""
        self._task, self._job = task, job
        self._samples, self._names = held_out.samples, held_out.class_names
        self._teachers, self._computed = teachers, computed
        self._teacher_outputs: Tensor | None = None
        self._teachers_change = job.trained_teacher is not None

    @property
    def teacher_outputs(self) -> Tensor | None:
        """See `TaskEvaluator`."""
        if self._teachers and (self._teacher_outputs is None or self._teachers_change):
            outputs = [self._outputs_of_teacher(name) for name in self._teachers]
            self._teacher_outputs = self._task.mixture(outputs, weights_of(self._job))
        return self._teacher_outputs

    def _outputs_of_teacher(self, name: str) -> Tensor:
        return self._computed[name] if name in self._computed else self._predict(self._teachers[name]())

    def _predict(self, model: Model) -> Tensor:
        with evaluating(model):
            return self._task.outputs_of(model, self._samples, model.input_key)

    def _evaluated(self, outputs: Tensor, teacher: Tensor | None) -> Evaluation:
        return self._task.evaluate_as(self._names, outputs, self._samples.targets, self._job.evaluation, teacher)

    def evaluate(self, model: Model) -> Predictions:
        """See `TaskEvaluator`."""
        outputs = self._predict(model)
        if not bool(outputs.isfinite().all()):
            raise NonFiniteOutputs("the logits of held-out samples are not finite")
        return Predictions(outputs, self._evaluated(outputs, self.teacher_outputs))

    def evaluate_alone(self, model: Model) -> Metrics:
        """See `TaskEvaluator`."""
        return self._evaluated(self._predict(model), None).metrics

    def evaluate_graph(self, call: Call, model: Model) -> Predictions:
        """See `TaskEvaluator`; samples are resized to the model's input size for the graph."""
        outputs = self._task.outputs_of(lambda samples: call(model.fit(samples)), self._samples, model.input_key)
        return Predictions(outputs, self._evaluated(outputs, self.teacher_outputs))

    def beside(self, teachers: Mapping[str, Model]) -> SampleEvaluator:
        """This evaluator, which uses the stored teachers already; or one that has the outputs of teachers that learned
        computed once."""
        if not self._teachers_change:
            return self
        fixed = copy(self)
        fixed._teachers = {name: partial(_same, model) for name, model in teachers.items()}
        fixed._teachers_change = False
        fixed._teacher_outputs = None
        return fixed

    def teacher_evaluation(self) -> Evaluation | None:
        """See `TaskEvaluator`."""
        outputs = self.teacher_outputs
        return None if outputs is None else self._evaluated(outputs, outputs)


class SampleExaminer:
    """Measures teachers on all held-out samples, or on some of them."""

    unit: str = "samples"

    def __init__(self, task: SampleTask, job: JobSpec, data: TaskData, seed: int, *, whole: bool) -> None:
        self._task, self._job, self._data, held = task, job, data, data.eval
        if not whole and held.samples > CHECKED:
            chosen = torch.randperm(held.samples, generator=generator(seed, "teacher-check"))[:CHECKED].sort().values
            held = held.take_samples(chosen.to(held.storage_device))
        self._held, self.samples = held, held.samples

    def measure(self, model: Model) -> tuple[Metrics, Tensor | None]:
        """See `TeacherExaminer`."""
        with evaluating(model):
            outputs = self._task.outputs_of(model, self._held, model.input_key)
        names = self._data.model.class_names
        return self._task.evaluate_as(names, outputs, self._held.targets, self._job.evaluation).metrics, outputs

    def baseline(self, model: Model) -> tuple[Metrics, str]:
        """See `TeacherExaminer`."""
        return self._task.baseline(self._job, self._data, self._held)

    def oddities(self, outputs: Tensor | None) -> Iterator[str]:
        """See `TeacherExaminer`."""
        if outputs is not None:
            yield from self._task.oddities(outputs, self._held.targets.cpu(), self._data.model)


def _same(model: Model) -> Model:
    return model
