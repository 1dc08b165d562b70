"""Embeddings of texts, compared with each other: pairs of texts with scores, or without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from app.recipe.job import EvaluationSpec, JobSpec
from app.recipe.students.architectures import Transformers
from app.recipe.students.model import ModelConfig
from app.recipe.students.shrink import embedding_of, network_of
from worker.data.batches import Batch
from worker.data.formats.column_readers import NumberColumns
from worker.data.formats.columns import Samples
from worker.data.pairs import SCORE, TEXT, as_rows
from worker.data.task_data import Targets, TaskData
from worker.metrics import embeddings as metrics
from worker.metrics import regression
from worker.tasks.base import Evaluation, Metrics
from worker.tasks.card import EncoderCard
from worker.tasks.regression import number_targets
from worker.tasks.samples import SampleTask
from worker.transformers_library import width_of

RECALL_AT = (1, 5, 10)
"""Numbers of nearest texts for recall."""


class EmbeddingTask(SampleTask):
    """Outputs (N, C) floating, an embedding per text; each text of a pair is a separate row, with targets as in
    `worker.data.pairs`."""

    name = "embedding"

    def __init__(self) -> None:
        self.columns, self.card = NumberColumns(self.name, texts=True), EncoderCard("sentence-similarity")

    def arrange(self, samples: Samples, param: str) -> Samples:
        return as_rows(samples, param)

    def targets(self, job: JobSpec, teachers: Mapping[str, ModelConfig], samples: Mapping[str, Samples]) -> Targets:
        return Targets(number_targets(samples))

    def answer(
        self,
        job: JobSpec,
        train: Batch,
        targets: Targets,
        teachers: Mapping[str, ModelConfig],
        inherited: ModelConfig | None,
    ) -> dict[str, Any]:
        network = network_of(job, teachers)
        assert isinstance(network, Transformers)  # the contract refuses others
        return {"targets": width_of(network), "embedding": embedding_of(job, teachers)}

    def evaluate(
        self, embeddings: Tensor, targets: Tensor, options: EvaluationSpec, teacher: Tensor | None = None
    ) -> Evaluation:
        """`spearman` and `pearson` of cosines with scores, for embeddings (N, C) float32; without scores `mrr` and
        `recall_at_<k>` of the second text, ranked among all second texts by the first. Likeness to the teacher's
        embeddings (N, D): `teacher_correlation` of cosines, `teacher_cosine` if widths are equal."""
        found = _measured(embeddings, targets.cpu()) | metrics.likeness(embeddings, teacher)
        return Evaluation({name: float(value) for name, value in found.items()})

    def likeness(self, outputs: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """The mean `cosine` of embeddings (N, C) float32."""
        return {"cosine": metrics.teacher_cosine(outputs, reference)}

    def baseline(self, job: JobSpec, data: TaskData, held_out: Batch) -> tuple[Metrics, str]:
        """Chance."""
        count = held_out.samples
        return {"spearman": 0.0, "mrr": sum(1 / place for place in range(1, count + 1)) / count}, "chance"

    def tolerances(
        self, embeddings: Tensor, targets: Tensor, options: EvaluationSpec, allowed: float
    ) -> Iterator[tuple[str, float]]:
        """None, for embeddings (N, C) float32: ranks jump if two cosines are that close."""
        yield from ()


def _measured(embeddings: Tensor, targets: Tensor) -> dict[str, Tensor]:
    scores = targets[0::2, SCORE]
    if not bool(scores.isnan().any()):
        found = metrics.pair_cosines(embeddings)
        return {
            "spearman": metrics.spearman_correlation(found, scores),
            "pearson": regression.pearson_correlation(found, scores),
        }
    ranks = metrics.retrieval_ranks(embeddings, targets[:, TEXT])
    recalls = {f"recall_at_{k}": metrics.recall_at(ranks, k) for k in RECALL_AT}
    return {"mrr": metrics.mean_reciprocal_rank(ranks), **recalls}


VECTORS = EmbeddingTask()
