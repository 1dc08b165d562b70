"""Tasks: targets, objective, evaluation and export of each; one object per task."""

from __future__ import annotations

from worker.tasks import (
    anomaly_detection,
    causal_lm,
    classification,
    embedding,
    image_embedding,
    keypoints,
    multi_label,
    regression,
    self_supervised,
    token_classification,
)
from worker.tasks.base import Task

_ALL: tuple[Task, ...] = (
    classification.IMAGES,
    classification.TEXTS,
    multi_label.LABELS,
    token_classification.TAGS,
    regression.NUMBERS,
    keypoints.POINTS,
    embedding.VECTORS,
    image_embedding.IMAGE_VECTORS,
    self_supervised.FEATURES,
    anomaly_detection.ANOMALIES,
    causal_lm.TOKENS,
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}
"""Tasks by name."""


def task_for(name: str) -> Task:
    """The task that jobs call `name`."""
    return TASKS[name]
