"""What the tasks with a vector of each image have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from app.recipe.job import EvaluationSpec, JobSpec
from app.recipe.students.model import ModelConfig
from app.recipe.students.vectors import dimensions_of, embedding_of
from worker.data.batches import Batch
from worker.data.task_data import Targets
from worker.metrics import embeddings as similarity
from worker.tasks.samples import SampleTask


class ImageVectors(SampleTask):
    """Outputs (N, D) floating: a vector per image."""

    def answer(
        self,
        job: JobSpec,
        train: Batch,
        targets: Targets,
        teachers: Mapping[str, ModelConfig],
        inherited: ModelConfig | None,
    ) -> dict[str, Any]:
        embedding = embedding_of(job, teachers)
        assert embedding is not None  # the task has this option
        plain = embedding.model_copy(update={"dimensions": None})
        return {"targets": dimensions_of(job, teachers), "embedding": plain}

    def likeness(self, outputs: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """The mean `cosine` of vectors (N, D) float32."""
        return {"cosine": similarity.teacher_cosine(outputs, reference)}

    def tolerances(
        self, embeddings: Tensor, targets: Tensor, options: EvaluationSpec, allowed: float
    ) -> Iterator[tuple[str, float]]:
        """None, for vectors (N, D) float32: ranks jump if two cosines are that close."""
        yield from ()
