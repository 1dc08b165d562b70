"""The vectors of a job's student, for tasks whose outputs are compared with each other."""

from __future__ import annotations

from collections.abc import Mapping

from app.recipe.job import JobSpec
from app.recipe.students.architectures import Shrink
from app.recipe.students.derived import described_start, start_of
from app.recipe.students.model import ModelConfig
from app.recipe.students.pooling import Embedding

DIMENSIONS = 128
"""Numbers of an image's vector, unless the job or the model that the student starts from has others."""


def embedding_of(job: JobSpec, teachers: Mapping[str, ModelConfig]) -> Embedding | None:
    """The student's vector of a sample; none for other tasks. Raises `Unshrinkable`."""
    if "embedding" not in job.task_spec.options:
        return None
    start = start_of(job, teachers) or (described_start(job, teachers) if isinstance(job.student, Shrink) else None)
    return job.embedding or (start.embedding if start else None) or Embedding()


def dimensions_of(job: JobSpec, teachers: Mapping[str, ModelConfig]) -> int:
    """Numbers of the student's vector of an image. Raises `Unshrinkable`."""
    wanted = job.embedding.dimensions if job.embedding else None
    start = start_of(job, teachers)
    return wanted or (start.targets if start and start.task_spec.answers_alike(job.task_spec) else None) or DIMENSIONS
