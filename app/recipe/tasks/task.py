"""Names that the training side still imports; this file goes with its last import."""

from __future__ import annotations

from app.recipe.tasks import TASKS, TaskName

Task = TaskName
CLASSIFICATION: tuple[Task, ...] = ("image-classification", "text-classification")
NUMBERS: tuple[Task, ...] = ("regression", "keypoints")
EMBEDDING: Task = "embedding"
CAUSAL_LM: Task = "causal-lm"
TEXT_TASKS: tuple[Task, ...] = ("text-classification", EMBEDDING, CAUSAL_LM)
ALL_TASKS: tuple[Task, ...] = (*CLASSIFICATION, *NUMBERS, EMBEDDING, CAUSAL_LM)
METRICS = {name: spec.metrics for name, spec in TASKS.items()}
