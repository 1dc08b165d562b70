"""Embeddings of texts, compared with each other: pairs of texts with scores or without, queries with candidates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from app.recipe.job import EvaluationSpec, JobSpec
from app.recipe.students.architectures import Transformers
from app.recipe.students.derived import network_of
from app.recipe.students.model import ModelConfig
from app.recipe.students.vectors import embedding_of
from worker.data.batches import Batch
from worker.data.formats.candidate_lists import CandidateColumns
from worker.data.formats.columns import Samples
from worker.data.pairs import CORPUS, NEGATIVE, PADDING, POSITIVE, QUERY, ROLE, SCORE, TEXT, as_rows, with_corpus
from worker.data.task_data import Targets, TaskData
from worker.losses.listed import EmbeddingObjective
from worker.metrics import embeddings as metrics
from worker.metrics import regression, retrieval
from worker.tasks.base import Evaluation, Metrics
from worker.tasks.card import EncoderCard
from worker.tasks.regression import number_targets
from worker.tasks.samples import SampleTask
from worker.transformers_library import width_of

RECALL_AT = (1, 5, 10)
"""Numbers of nearest texts for recall."""
GAIN_AT = 10
"""Number of nearest texts for the normalised discounted cumulative gain."""


class EmbeddingTask(SampleTask):
    """Outputs (N, C) floating, an embedding per text; each text of a pair, query and candidate is a separate row, with
    targets as in `worker.data.pairs`."""

    name = "embedding"
    objective = EmbeddingObjective

    def __init__(self) -> None:
        self.columns, self.card = CandidateColumns(self.name, texts=True), EncoderCard("sentence-similarity")

    def arrange(self, samples: Samples, param: str) -> Samples:
        return as_rows(samples, param)

    def gathered(self, samples: Mapping[str, Samples]) -> Mapping[str, Samples]:
        rest = {param: one for param, one in samples.items() if param != "data.corpus"}
        if "data.corpus" not in samples:
            return rest
        return rest | {"data.eval": with_corpus(rest["data.eval"], samples["data.corpus"])}

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
        `recall_at_<k>` of the second text, ranked among all second texts by the first; of queries with candidates these
        and `ndcg_at_10` of the positives, ranked among the candidates of all queries. Likeness to the teacher's
        embeddings (N, D): `teacher_correlation` of cosines, `teacher_cosine` if widths are equal."""
        targets = targets.cpu()
        there = (targets[:, ROLE] != PADDING).to(embeddings.device)
        compared = None if teacher is None else teacher[there]
        found = _measured(embeddings, targets) | metrics.likeness(embeddings[there], compared)
        return Evaluation({name: float(value) for name, value in found.items()})

    def likeness(self, outputs: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """The mean `cosine` of embeddings (N, C) float32."""
        return {"cosine": metrics.teacher_cosine(outputs, reference)}

    def baseline(self, job: JobSpec, data: TaskData, held_out: Batch) -> tuple[Metrics, str]:
        """Chance, of a single text to be found."""
        texts, roles = held_out.targets[:, TEXT], held_out.targets[:, ROLE]
        documents = texts[(roles != QUERY) & (roles != PADDING)]
        count = held_out.samples if _paired(held_out.targets) else len(torch.unique(documents))
        return {"spearman": 0.0, "mrr": sum(1 / place for place in range(1, count + 1)) / count}, "chance"

    def tolerances(
        self, embeddings: Tensor, targets: Tensor, options: EvaluationSpec, allowed: float
    ) -> Iterator[tuple[str, float]]:
        """None, for embeddings (N, C) float32: ranks jump if two cosines are that close."""
        yield from ()


def _paired(targets: Tensor) -> bool:
    """Whether the rows of targets (R, 3) are pairs of texts, not queries with any number of candidates."""
    roles = targets[:, ROLE]
    return bool((roles[0::2] == QUERY).all() & (roles[1::2] == POSITIVE).all())


def _measured(embeddings: Tensor, targets: Tensor) -> dict[str, Tensor]:
    if not _paired(targets):
        return _ranked(embeddings, targets)
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


def _ranked(embeddings: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Metrics of queries with candidates."""
    roles = targets[:, ROLE]
    row = torch.arange(len(roles))
    query = row.where(roles == QUERY, 0).cummax(0).values
    relevant = (roles == POSITIVE).nonzero().squeeze(1)
    documents = row[(roles == POSITIVE) | (roles == NEGATIVE) | (roles == CORPUS)]
    judged = retrieval.Judgements(row[roles == QUERY], documents, torch.stack([query[relevant], relevant], 1))
    found = retrieval.rank_relevant(embeddings, targets[:, TEXT], judged)
    recalls = {f"recall_at_{k}": retrieval.recall_of(found, k) for k in RECALL_AT}
    gain = retrieval.ndcg_of(found, GAIN_AT)
    return {"mrr": retrieval.mean_reciprocal_rank_of(found), **recalls, f"ndcg_at_{GAIN_AT}": gain}


VECTORS = EmbeddingTask()
