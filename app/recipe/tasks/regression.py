"""Regression: numbers of an image, a text or a row of numbers."""

from __future__ import annotations

import math

from app.recipe.data.facts import ArrayFacts
from app.recipe.data.sources import CsvData, HfData, ImageData, JsonlData, ParquetData
from app.recipe.students.hugging_face import IMAGE_MODEL_TYPES, TEXT_MODEL_TYPES
from app.recipe.tasks.base import MainMetric, TaskSpec


class RegressionSpec(TaskSpec):
    """Numbers of any sample."""

    name = "regression"
    reads = ("images", "table", "texts")
    formats = (ImageData, CsvData, JsonlData, ParquetData, HfData)
    model_types = (*IMAGE_MODEL_TYPES, *TEXT_MODEL_TYPES)
    answers = "numbers"
    sized_by = "targets"
    problem_type = "regression"
    metrics = {"mse": False, "rmse": False, "mae": False, "r2": True, "pearson": True}
    main_metric = MainMetric("rmse", higher_is_better=False)
    label_shape = "(N,) or (N, T) numbers"

    def has_label_shape(self, labels: ArrayFacts) -> bool:
        return len(labels.shape) in (1, 2) and labels.dtype[0] in "iuf" and 0 not in labels.shape[1:]

    def targets_in(self, labels: ArrayFacts) -> int | None:
        return math.prod(labels.shape[1:])
