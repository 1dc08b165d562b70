"""The registry of tasks. A new one is a file in this package and its line here."""

from __future__ import annotations

from typing import Literal

from app.recipe.base import TaskOption
from app.recipe.tasks.anomaly_detection import AnomalyDetectionSpec
from app.recipe.tasks.base import TaskSpec
from app.recipe.tasks.causal_lm import CausalLmSpec
from app.recipe.tasks.classification import ImageClassificationSpec, TextClassificationSpec
from app.recipe.tasks.embedding import EmbeddingSpec
from app.recipe.tasks.image_embedding import ImageEmbeddingSpec
from app.recipe.tasks.keypoints import KeypointsSpec
from app.recipe.tasks.multi_label import MultiLabelSpec
from app.recipe.tasks.regression import RegressionSpec
from app.recipe.tasks.self_supervised import SelfSupervisedSpec
from app.recipe.tasks.token_classification import TokenClassificationSpec

TaskName = Literal[
    "image-classification",
    "text-classification",
    "multi-label-classification",
    "token-classification",
    "regression",
    "keypoints",
    "embedding",
    "image-embedding",
    "self-supervised",
    "anomaly-detection",
    "causal-lm",
]
_SPECS: tuple[TaskSpec, ...] = (
    ImageClassificationSpec(),
    TextClassificationSpec(),
    MultiLabelSpec(),
    TokenClassificationSpec(),
    RegressionSpec(),
    KeypointsSpec(),
    EmbeddingSpec(),
    ImageEmbeddingSpec(),
    SelfSupervisedSpec(),
    AnomalyDetectionSpec(),
    CausalLmSpec(),
)
TASKS: dict[str, TaskSpec] = {spec.name: spec for spec in _SPECS}
"""All tasks by name."""


def task_of(name: TaskName) -> TaskSpec:
    """The task called `name`."""
    return TASKS[name]


def tasks_for(option: type[TaskOption]) -> list[str]:
    """Names of the tasks that a loss, optimizer, augmentation or method is for."""
    return [name for name, spec in TASKS.items() if spec.fits(option)]


def tasks_with(option: str) -> str:
    """Names of the tasks that the field of a job at this path is for, as text for messages."""
    return ", ".join(name for name, spec in TASKS.items() if option in spec.options)
