"""The metrics that a model is measured by on its own, and which of two values is the better one."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.data.facts import Problem
from app.recipe.job import JobSpec
from app.recipe.tasks.task import CAUSAL_LM, EMBEDDING, Task

_OF_CLASSES = {"accuracy": True, "nll": False, "ece": False, "adaptive_ece": False, "brier": False}
METRICS: dict[Task, dict[str, bool]] = {
    "image-classification": _OF_CLASSES,
    "text-classification": _OF_CLASSES,
    "regression": {"mse": False, "rmse": False, "mae": False, "r2": True, "pearson": True},
    "keypoints": {"nme": False, "failure_rate": False, "auc": True},
    EMBEDDING: {
        **{"spearman": True, "pearson": True},
        **{"mrr": True, "recall_at_1": True, "recall_at_5": True, "recall_at_10": True},
    },
    CAUSAL_LM: {"perplexity": False, "nll": False, "accuracy": True, "bits_per_byte": False},
}
"""By task and name: whether more is better."""


def requirement_problems(job: JobSpec) -> Iterator[Problem]:
    """What `evaluation.require_teacher` asks for that no teacher of the job is measured by."""
    required, known = job.evaluation.require_teacher, METRICS[job.task]
    if required is not None and not job.all_teachers:
        yield Problem("evaluation.require_teacher", "is given, but there is no teacher", "a teacher, or null")
    for name in (name for name in required or () if name not in known):
        found, accepted = f"is no metric of {job.task}", f"one of {', '.join(known)}"
        yield Problem(f"evaluation.require_teacher.{name}", found, accepted)
