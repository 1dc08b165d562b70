"""Vectors of texts, compared with each other: pairs of texts with scores, or without."""

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
from worker.metrics import embeddings, regression
from worker.tasks.base import Evaluation, Metrics
from worker.tasks.card import EncoderCard
from worker.tasks.regression import number_targets
from worker.tasks.samples import SampleTask
from worker.transformers_library import width_of

RECALL_AT = (1, 5, 10)
"""How many of the nearest texts are looked through."""


class EmbeddingTask(SampleTask):
    """Outputs (N, C), a vector per text; both texts of a pair are rows of their own, with targets as in
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
        self, outputs: Tensor, targets: Tensor, options: EvaluationSpec, teacher: Tensor | None = None
    ) -> Evaluation:
        """`spearman` and `pearson` of cosines with scores; without scores `mrr` and `recall_at_<k>` of the second text,
        looked for among all second ones by the first; likeness: `teacher_correlation` of cosines, `teacher_cosine`
        where widths are equal. The teacher may be wider."""
        found = _measured(outputs, targets.cpu()) | _likeness(outputs, teacher)
        return Evaluation({name: float(value) for name, value in found.items()})

    def likeness(self, outputs: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """The mean `cosine`."""
        return {"cosine": embeddings.teacher_cosine(outputs, reference)}

    def baseline(self, job: JobSpec, data: TaskData, held_out: Batch) -> tuple[Metrics, str]:
        """Chance."""
        count = held_out.samples
        return {"spearman": 0.0, "mrr": sum(1 / place for place in range(1, count + 1)) / count}, "chance"

    def tolerances(
        self, outputs: Tensor, targets: Tensor, options: EvaluationSpec, allowed: float
    ) -> Iterator[tuple[str, float]]:
        """None: ranks jump where two cosines are that close."""
        yield from ()


def _measured(vectors: Tensor, targets: Tensor) -> dict[str, Tensor]:
    scores = targets[0::2, SCORE]
    if not bool(scores.isnan().any()):
        found = embeddings.pair_cosines(vectors)
        return {
            "spearman": embeddings.spearman_correlation(found, scores),
            "pearson": regression.pearson_correlation(found, scores),
        }
    places = embeddings.retrieval_ranks(vectors, targets[:, TEXT])
    recalls = {f"recall_at_{k}": embeddings.recall_at(places, k) for k in RECALL_AT}
    return {"mrr": embeddings.mean_reciprocal_rank(places), **recalls}


def _likeness(vectors: Tensor, teacher: Tensor | None) -> dict[str, Tensor]:
    if teacher is None:
        return {}
    found = {"teacher_correlation": embeddings.teacher_correlation(vectors, teacher)}
    same = vectors.shape == teacher.shape
    return found | ({"teacher_cosine": embeddings.teacher_cosine(vectors, teacher)} if same else {})


VECTORS = EmbeddingTask()
