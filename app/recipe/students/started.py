"""Networks of students that start from a stored model, or whose encoder does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.recipe.job import JobSpec
from app.recipe.students.architectures import DualEncoder, Network, Pretrained, Transformers
from app.recipe.students.model import ModelConfig
from app.recipe.students.pooling import Pooling
from app.recipe.students.replacements import Replacement


class Unshrinkable(ValueError):
    """The student can't be derived from a model as the job sets; `field` is the field of the student at fault."""

    def __init__(self, field: str, message: str, accepted: str) -> None:
        super().__init__(message)
        self.field, self.message, self.accepted = field, message, accepted


def started(job: JobSpec, start: ModelConfig) -> Network:
    """The network of a student that starts from a stored model, or whose encoder does. Raises `Unshrinkable`."""
    stored = start.architecture
    if not isinstance(job.student, DualEncoder):
        if isinstance(stored, DualEncoder):
            found = "is pretrained, and this model is a dual-encoder, whose labels are encoded in training"
            raise Unshrinkable("architecture", found, "dual-encoder, whose encoder is pretrained from this model")
        return _with_replacements(stored, job.student.replace) if isinstance(job.student, Pretrained) else stored
    encoder, pooling = (stored.encoder, stored.pooling) if isinstance(stored, DualEncoder) else (stored, None)
    if not isinstance(encoder, Transformers) or encoder.reads != "texts" or encoder.decodes:
        name = encoder.model_type if isinstance(encoder, Transformers) else encoder.architecture
        field = job.start_param.removeprefix("student.")
        raise Unshrinkable(field, f"is a {name}, which does not encode texts", "an encoder of texts")
    if encoder.replace:
        field = job.start_param.removeprefix("student.")
        raise Unshrinkable(field, "has replaced layers, and is no encoder of a dual-encoder", "one without")
    return described(job.student, encoder, pooling or (start.embedding.pooling if start.embedding else None))


def _with_replacements(stored: Network, more: Sequence[Replacement]) -> Network:
    if not more:
        return stored
    if not isinstance(stored, Transformers):
        found = f"is given, and the stored model is a {stored.architecture}"
        raise Unshrinkable("replace", found, "none, or a network of the Transformers library")
    return stored.model_copy(update={"replace": [*stored.replace, *more]})


def described(student: DualEncoder, encoder: Transformers | None = None, pooling: Pooling | None = None) -> DualEncoder:
    """The description of `student` as a network, whose encoder may be a stored one that pools by `pooling`."""
    pooled = student.pooling or pooling or "mean"
    in_training: dict[str, Any] = {"label_texts": {}, "labels_per_step": None}
    return student.model_copy(update={"encoder": encoder or student.encoder, "pooling": pooled, **in_training})
