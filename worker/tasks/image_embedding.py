"""Embeddings of images, compared with each other: of classes that training may never have seen, or in pairs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from app.recipe.data.sources import Data
from app.recipe.job import EvaluationSpec, JobSpec
from app.recipe.students.model import ModelConfig
from worker.data.batches import Batch
from worker.data.formats.columns import Samples
from worker.data.formats.image_pairs import PAIR, VectorColumns
from worker.data.holdout import hold_out
from worker.data.identities import hold_out_classes, identities, renumbered, unseen_count, with_pairs
from worker.data.image_pairs import is_paired, pair_labels, pair_targets, shared_pairs
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
    numbers. The images of pairs are consecutive rows, with targets (N, 3) as in `worker.data.pairs`."""

    name = "image-embedding"

    def __init__(self) -> None:
        self.columns, self.card = VectorColumns(self.name), VectorCard("image-feature-extraction")

    def targets(self, job: JobSpec, teachers: Mapping[str, ModelConfig], samples: Mapping[str, Samples]) -> Targets:
        pairs = {param: one for param, one in samples.items() if one.rows_per_sample == PAIR}
        single = identities({param: one for param, one in samples.items() if param not in pairs})
        return single._replace(by_file={**single.by_file, **pair_targets(pairs)})

    def split(self, train: Batch, data: Data, seed: int) -> tuple[Tensor, Tensor]:
        """All samples of some classes are held out, or some of the pairs."""
        if is_paired(train.targets):
            return super().split(train, data, seed)
        count = unseen_count(len(torch.unique(train.targets)), data.unseen_classes, data.eval_fraction)
        return hold_out_classes(train.targets, count, seed)

    def hold_out(self, train: Batch, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Numbers (n,) int64 of the samples to keep and to hold out, with a share of each class, or of
        the pairs of one class."""
        labels = pair_labels(train.targets) if is_paired(train.targets) else train.targets
        return hold_out(labels.cpu(), count, seed)

    def settle(self, train: Batch, evaluation: Batch, targets: Targets) -> Halves:
        if not is_paired(train.targets) and not is_paired(evaluation.targets):
            return renumbered(train, evaluation, targets)
        return with_pairs(train, evaluation, targets)

    def label_notes(self, train: Tensor, evaluation: Tensor, model: ModelConfig) -> list[str]:
        """A warning about images of pairs that are trained on and evaluated, too."""
        if not is_paired(train) or not is_paired(evaluation) or not (shared := shared_pairs(train, evaluation)):
            return []
        share = f"{shared} of {len(pair_labels(evaluation))}"
        return [f"{share} pairs to evaluate on have an image that is trained on, so that their metrics are too good"]

    def evaluate(
        self, embeddings: Tensor, targets: Tensor, options: EvaluationSpec, teacher: Tensor | None = None
    ) -> Evaluation:
        """Metrics of embeddings (N, D) float32 with classes (N,) int64: of retrieval, verification and class means (see
        `worker.metrics.labelled_vectors`); of pairs, with targets (N, 3), of verification alone. Likeness to the
        teacher's embeddings (N, E): `teacher_correlation` of cosines, `teacher_cosine` if widths are equal."""
        found = _of_pairs(embeddings, targets) if is_paired(targets) else _of_classes(embeddings, targets)
        found |= similarity.likeness(embeddings, teacher)
        return Evaluation({name: float(value) for name, value in found.items()})

    def baseline(self, job: JobSpec, data: TaskData, held_out: Batch) -> tuple[Metrics, str]:
        """A random order, or a random decision about each pair."""
        return {"auc": 0.5} if is_paired(held_out.targets) else metrics.chance(held_out.targets), "chance"


def _of_pairs(embeddings: Tensor, targets: Tensor) -> dict[str, Tensor]:
    return metrics.pair_verification(embeddings, pair_labels(targets), FALSE_RATES)


def _of_classes(embeddings: Tensor, targets: Tensor) -> dict[str, Tensor]:
    found = metrics.retrieval(embeddings, targets, RECALL_AT)
    found |= metrics.verification(embeddings, targets, FALSE_RATES)
    accuracy = metrics.class_mean_accuracy(embeddings, targets)
    return found | ({} if accuracy is None else {"class_mean_accuracy": accuracy})


IMAGE_VECTORS = ImageEmbedding()
