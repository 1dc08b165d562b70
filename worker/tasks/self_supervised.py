"""Self-supervision of images: vectors that are learned without labels, and evaluated as frozen features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.data.sources import Data
from app.recipe.job import EvaluationSpec, JobSpec
from app.recipe.losses import NtXent
from app.recipe.plan import split_counts
from app.recipe.students.model import ModelConfig
from worker.data.augment import Augmenter
from worker.data.batches import Batch, whole_split
from worker.data.formats.column_readers import OptionalClassColumns, is_unlabelled
from worker.data.formats.columns import Samples
from worker.data.holdout import hold_out, hold_out_any
from worker.data.identities import identities
from worker.data.randomness import derive_seed
from worker.data.task_data import Halves, Targets, TaskData
from worker.losses.views import nt_xent
from worker.metrics import embeddings as similarity
from worker.metrics.probes import probes
from worker.students.model import Model
from worker.tasks.base import Call, Evaluation, HeldOut, Metrics, Predictions, TeacherExaminer
from worker.tasks.card import VectorCard
from worker.tasks.image_vectors import ImageVectors
from worker.tasks.prediction import evaluating
from worker.tasks.samples import SampleEvaluator, SampleExaminer, SampleTask
from worker.tensors import IGNORED

COMPARED = 1024
"""Held-out samples whose views are compared; of more, so many are taken at equal distances."""
TEMPERATURE = 0.5
"""Of the loss of held-out views, for a job without `ntxent`."""
NO_PROBES = (
    "the evaluation samples have no labels of two classes with two samples of one: they are evaluated by their views "
    "alone, with the loss view_loss and view_recall_at_1, and there are no probes"
)


class HeldOutViews:
    """Two augmented views of held-out samples, the same in every evaluation."""

    def __init__(self, job: JobSpec, samples: Batch) -> None:
        chosen = torch.linspace(0, len(samples) - 1, min(COMPARED, len(samples)), dtype=torch.float64).round().long()
        some = samples.take(chosen.to(samples.storage_device))
        some = whole_split(some.inputs, some.targets)
        assert job.seed is not None  # set before training
        augment = Augmenter(job.data, some, None, derive_seed(job.seed, "held-out-views"), views=2)
        self._views = augment(some, 0)
        terms = (term for terms in reversed(job.objectives.values()) for term in terms)
        self._temperature = next((term.temperature for term in terms if isinstance(term, NtXent)), TEMPERATURE)

    def metrics(self, outputs_of: Callable[[Batch], Tensor]) -> Metrics:
        """`view_recall_at_1`: the share of views whose nearest other one is of the same sample, and `view_loss`:
        NT-Xent of the vectors (R, D) float32 that `outputs_of` returns, without a projection."""
        vectors = outputs_of(self._views).double()
        cosines = _cosines(vectors)
        row = torch.arange(len(vectors))
        partner = cosines[row, row ^ 1]
        cosines[row, row ^ 1] = -torch.inf
        recall = (partner > cosines.amax(1)).double().mean()
        return {"view_recall_at_1": float(recall), "view_loss": float(nt_xent(vectors, self._temperature).mean())}


def _cosines(vectors: Tensor) -> Tensor:
    """Cosines (R, R) of vectors (R, D) with each other, and -inf with themselves."""
    directions = F.normalize(vectors, dim=-1)
    return (directions @ directions.T).fill_diagonal_(-torch.inf)


class SelfSupervised(ImageVectors):
    """Outputs (N, D) floating, a vector per image. Targets (N,) int64 are all 0 in training, and in evaluation classes,
    or IGNORED without labels."""

    name = "self-supervised"

    def __init__(self) -> None:
        self.columns, self.card = OptionalClassColumns(self.name), VectorCard("image-feature-extraction")

    def targets(self, job: JobSpec, teachers: Mapping[str, ModelConfig], samples: Mapping[str, Samples]) -> Targets:
        labelled = {param: one for param, one in samples.items() if not is_unlabelled(one)}
        found = identities(labelled)
        without = {param: torch.full((len(samples[param].labels),), IGNORED) for param in samples.keys() - labelled}
        return found._replace(by_file={**found.by_file, **without})

    def hold_out(self, train: Batch, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Numbers (n,) int64 of the samples to keep and to hold out; if there are labels, with a share of each
        class."""
        if bool((train.targets == IGNORED).any()):
            return hold_out_any(train.samples, count, seed)
        return hold_out(train.targets, count, seed)

    def split(self, train: Batch, data: Data, seed: int) -> tuple[Tensor, Tensor]:
        return self.hold_out(train, split_counts(data, train.samples)[1], seed)

    def settle(self, train: Batch, evaluation: Batch, targets: Targets) -> Halves:
        """Training samples lose their labels."""
        without = Batch(train.inputs, torch.zeros_like(train.targets), train.index, train.epoch)
        labels = evaluation.targets[evaluation.targets != IGNORED]
        figures = {"labels": {"evaluated": len(labels), "classes": len(torch.unique(labels)), "trained": 0}}
        return Halves(without, evaluation, figures)

    def label_notes(self, train: Tensor, evaluation: Tensor, model: ModelConfig) -> list[str]:
        labels = evaluation[evaluation != IGNORED]
        probed = len(labels) and len(torch.unique(labels)) > 1 and int(labels.bincount().max()) > 1
        return [] if probed else [NO_PROBES]

    def evaluate(
        self, embeddings: Tensor, targets: Tensor, options: EvaluationSpec, teacher: Tensor | None = None
    ) -> Evaluation:
        """Probes (see `worker.metrics.probes`) of vectors (N, D) float32 with classes (N,) int64, if there are any.
        Likeness to the teacher's vectors (N, E): `teacher_correlation` of cosines, `teacher_cosine` if widths are
        equal."""
        labelled = targets.cpu() != IGNORED
        found = probes(embeddings[labelled], targets.cpu()[labelled]) if bool(labelled.any()) else {}
        found |= similarity.likeness(embeddings, teacher)
        return Evaluation({name: float(value) for name, value in found.items()})

    def baseline(self, job: JobSpec, data: TaskData, held_out: Batch) -> tuple[Metrics, str]:
        """Chance, and the largest class."""
        labels = held_out.targets.cpu()
        labels = labels[labels != IGNORED]
        share = {"linear_accuracy": float(labels.bincount().max() / len(labels))} if len(labels) else {}
        others = max(1, 2 * min(COMPARED, len(held_out)) - 1)
        return {**share, "view_recall_at_1": 1 / others}, "chance"

    def evaluator(
        self,
        job: JobSpec,
        held_out: HeldOut,
        live: Mapping[str, Callable[[], Model]],
        stored: Mapping[str, Callable[[], Model]],
        computed: Mapping[str, Tensor],
    ) -> SelfSupervisedEvaluator:
        return SelfSupervisedEvaluator(self, job, held_out, stored, computed)

    def examiner(self, job: JobSpec, data: TaskData, seed: int, *, whole: bool) -> TeacherExaminer:
        return SelfSupervisedExaminer(self, job, data, seed, whole=whole)


class SelfSupervisedEvaluator(SampleEvaluator):
    """Evaluates vectors of held-out samples and of their views."""

    def __init__(
        self,
        task: SelfSupervised,
        job: JobSpec,
        held_out: HeldOut,
        teachers: Mapping[str, Callable[[], Model]],
        computed: Mapping[str, Tensor],
    ) -> None:
        super().__init__(task, job, held_out, teachers, computed)
        self._views = HeldOutViews(job, held_out.samples)

    def evaluate(self, model: Model) -> Predictions:
        found = super().evaluate(model)
        return found._replace(evaluation=_joined(found.evaluation, self._of(model)))

    def evaluate_alone(self, model: Model) -> Metrics:
        return super().evaluate_alone(model) | self._of(model)

    def evaluate_graph(self, call: Call, model: Model) -> Predictions:
        found = super().evaluate_graph(call, model)
        views = self._views.metrics(
            lambda batch: self._task.outputs_of(lambda rows: call(model.fit(rows)), batch, model.input_key)
        )
        return found._replace(evaluation=_joined(found.evaluation, views))

    def teacher_evaluation(self) -> Evaluation | None:
        found = super().teacher_evaluation()
        if found is None:
            return None
        (teacher,) = self._teachers.values()  # the contract refuses several
        return _joined(found, self._of(teacher()))

    def _of(self, model: Model) -> Metrics:
        return self._views.metrics(partial(_outputs, self._task, model))


class SelfSupervisedExaminer(SampleExaminer):
    """Measures teachers by probes and by views."""

    def measure(self, model: Model) -> tuple[Metrics, Tensor | None]:
        found, outputs = super().measure(model)
        return found | HeldOutViews(self._job, self._held).metrics(partial(_outputs, self._task, model)), outputs


def _outputs(task: SampleTask, model: Model, batch: Batch) -> Tensor:
    """Vectors (R, D) float32 of a model, on the CPU."""
    with evaluating(model):
        return task.outputs_of(model, batch, model.input_key)


def _joined(evaluation: Evaluation, further: Metrics) -> Evaluation:
    return evaluation._replace(metrics=evaluation.metrics | further)


FEATURES = SelfSupervised()
