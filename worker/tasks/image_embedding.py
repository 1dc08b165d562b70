"""Embeddings of images, compared with each other: of classes that training may never have seen."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from app.recipe.data.sources import Data
from app.recipe.job import EvaluationSpec, JobSpec
from app.recipe.students.model import ModelConfig
from worker.data.batches import Batch
from worker.data.formats.column_readers import ClassColumns
from worker.data.formats.columns import Samples
from worker.data.holdout import hold_out
from worker.data.identities import hold_out_classes, identities, renumbered, unseen_count
from worker.data.task_data import Halves, Targets, TaskData
from worker.metrics import embeddings as similarity
from worker.metrics import labelled_vectors as metrics
from worker.tasks.base import Evaluation, Metrics
from worker.tasks.card import VectorCard
from worker.tasks.image_vectors import ImageVectors

RECALL_AT = (1, 5, 10)
"""Numbers of nearest images for recall."""
FALSE_RATES = ("1e-2", "1e-3")
"""Shares of pairs of two classes that may be accepted."""


class ImageEmbedding(ImageVectors):
    """Targets (N,) int64, outputs (N, D) floating: an embedding per image. Classes that are trained on have the lowest
    numbers."""

    name = "image-embedding"

    def __init__(self) -> None:
        self.columns, self.card = ClassColumns(self.name), VectorCard("image-feature-extraction")

    def targets(self, job: JobSpec, teachers: Mapping[str, ModelConfig], samples: Mapping[str, Samples]) -> Targets:
        return identities(samples)

    def split(self, train: Batch, data: Data, seed: int) -> tuple[Tensor, Tensor]:
        """All samples of some classes are held out."""
        count = unseen_count(len(torch.unique(train.targets)), data.unseen_classes, data.eval_fraction)
        return hold_out_classes(train.targets, count, seed)

    def hold_out(self, train: Batch, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Numbers (n,) int64 of the samples to keep and to hold out, with a share of each class."""
        return hold_out(train.targets, count, seed)

    def settle(self, train: Batch, evaluation: Batch, targets: Targets) -> Halves:
        return renumbered(train, evaluation, targets)

    def evaluate(
        self, embeddings: Tensor, targets: Tensor, options: EvaluationSpec, teacher: Tensor | None = None
    ) -> Evaluation:
        """Metrics of embeddings (N, D) float32 with classes (N,) int64: of retrieval, verification and class means (see
        `worker.metrics.labelled_vectors`). Likeness to the teacher's embeddings (N, E): `teacher_correlation` of
        cosines, `teacher_cosine` if widths are equal."""
        found = metrics.retrieval(embeddings, targets, RECALL_AT)
        found |= metrics.verification(embeddings, targets, FALSE_RATES)
        accuracy = metrics.class_mean_accuracy(embeddings, targets)
        found |= {} if accuracy is None else {"class_mean_accuracy": accuracy}
        found |= similarity.likeness(embeddings, teacher)
        return Evaluation({name: float(value) for name, value in found.items()})

    def baseline(self, job: JobSpec, data: TaskData, held_out: Batch) -> tuple[Metrics, str]:
        """A random order."""
        return metrics.chance(held_out.targets), "chance"


IMAGE_VECTORS = ImageEmbedding()
