"""Keypoints: coordinates of points in an image."""

from __future__ import annotations

import math

from app.recipe.base import TaskOption
from app.recipe.data.augmentation import Augmentation
from app.recipe.data.facts import ArrayFacts
from app.recipe.data.sources import HfData, ImageData, ParquetData
from app.recipe.students.hugging_face import IMAGE_MODEL_TYPES
from app.recipe.tasks.base import MainMetric, TaskSpec


class KeypointsSpec(TaskSpec):
    """Points of images, x before y, as fractions of width and height."""

    name = "keypoints"
    reads = ("images",)
    formats = (ImageData, ParquetData, HfData)
    model_types = IMAGE_MODEL_TYPES
    answers = "numbers"
    sized_by = "targets"
    problem_type = "regression"
    metrics = {"nme": False, "failure_rate": False, "auc": True}
    main_metric = MainMetric("nme", higher_is_better=False)
    options = frozenset({"evaluation.nme_points", "data.augment.pairs"})
    label_shape = "(N, K, 2) floating point"

    def fits(self, option: type[TaskOption]) -> bool:
        mixes = issubclass(option, Augmentation) and option.mixes  # a mean of two faces' points is in neither face
        return super().fits(option) and not mixes

    def has_label_shape(self, labels: ArrayFacts) -> bool:
        pairs = len(labels.shape) == 3 and labels.shape[1] > 0 and labels.shape[2] == 2
        return pairs and labels.dtype[0] == "f"

    def targets_in(self, labels: ArrayFacts) -> int | None:
        return math.prod(labels.shape[1:])
