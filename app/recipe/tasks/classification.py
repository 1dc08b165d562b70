"""Classification tasks: one of several classes for each sample."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.data.sources import CsvData, HfData, ImageData, ImageFolderData, JsonlData, ParquetData, Table
from app.recipe.problem import Problem
from app.recipe.students.hugging_face import IMAGE_MODEL_TYPES, TEXT_MODEL_TYPES
from app.recipe.tasks.base import MainMetric, TaskSpec


class _ClassificationSpec(TaskSpec):
    answers = "classes"
    sized_by = "classes"
    problem_type = "single_label_classification"
    metrics = {"accuracy": True, "nll": False, "ece": False, "adaptive_ece": False, "brier": False}
    main_metric = MainMetric("accuracy", higher_is_better=True, tie_breaker="nll")

    def column_problems(self, data: Table) -> Iterator[Problem]:
        yield from super().column_problems(data)
        if len(data.label_columns) > 1:
            yield Problem("data.label_columns", f"names {len(data.label_columns)} columns for one class", "one column")


class ImageClassificationSpec(_ClassificationSpec):
    """Classes of images."""

    name = "image-classification"
    reads = ("images",)
    formats = (ImageData, ParquetData, ImageFolderData, HfData)
    model_types = IMAGE_MODEL_TYPES


class TextClassificationSpec(_ClassificationSpec):
    """Classes of texts, or of pairs of them."""

    name = "text-classification"
    reads = ("texts",)
    formats = (CsvData, JsonlData, ParquetData, HfData)
    model_types = TEXT_MODEL_TYPES

    def column_problems(self, data: Table) -> Iterator[Problem]:
        yield from super().column_problems(data)
        if len(data.input_columns) > 2:
            yield Problem(
                "data.input_columns", f"names {len(data.input_columns)} columns of texts", "one or two columns"
            )
