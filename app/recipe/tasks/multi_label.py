"""Multi-label classification: any number of classes for each image or text."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.data.facts import ArrayFacts
from app.recipe.data.sources import CsvData, HfData, ImageData, JsonlData, ParquetData, Table
from app.recipe.problem import Problem
from app.recipe.students.hugging_face import IMAGE_MODEL_TYPES, TEXT_MODEL_TYPES
from app.recipe.students.inputs import Input
from app.recipe.tasks.base import NUMBER_BYTES, MainMetric, TaskSpec

MANY_LABELS = 8192
"""With more labels than this, targets are lists of the labels that a sample has, and not a number for each label."""
LISTED_METRICS = ("precision_at_1", "precision_at_3", "precision_at_5", "nll")
"""Metrics with so many labels; all others need the logits of all samples."""
ASSUMED_LABELS = 32
"""Most labels of a sample in estimates, where they are listed."""


class MultiLabelSpec(TaskSpec):
    """Labels of images and texts, each present or absent independently."""

    name = "multi-label-classification"
    reads = ("images", "table", "texts")
    formats = (ImageData, CsvData, JsonlData, ParquetData, HfData)
    model_types = (*IMAGE_MODEL_TYPES, *TEXT_MODEL_TYPES)
    answers = "labels"
    sized_by = "classes"
    problem_type = "multi_label_classification"
    metrics = {
        **{"map": True, "micro_f1": True, "macro_f1": True},
        **{"precision_at_1": True, "precision_at_3": True, "precision_at_5": True},
        **{"ece": False, "nll": False},
    }
    main_metric = MainMetric("map", higher_is_better=True, tie_breaker="nll", stand_in="precision_at_1")
    options = frozenset({"data.label_separator", "data.label_texts"})
    label_shape = "(N, C) of 0 and 1, C at least 2"

    def column_problems(self, data: Table) -> Iterator[Problem]:
        yield from super().column_problems(data)
        if isinstance(data, CsvData) and len(data.label_columns) == 1:
            yield from _separator_problems(data)

    def has_label_shape(self, labels: ArrayFacts) -> bool:
        return len(labels.shape) == 2 and labels.shape[1] > 1 and labels.dtype[0] in "biuf"

    def target_bytes(self, sample: Input, outputs: int) -> int:
        return NUMBER_BYTES * (outputs if outputs <= MANY_LABELS else ASSUMED_LABELS)

    def classes_in(self, labels: ArrayFacts) -> int | None:
        return labels.shape[1]


def _separator_problems(data: CsvData) -> Iterator[Problem]:
    if not data.quoted and data.separates_labels == data.delimiter:
        found = f"is {data.separates_labels!r}, as data.delimiter, and nothing is quoted"
        yield Problem("data.label_separator", found, "another separator, or quoted: true")
