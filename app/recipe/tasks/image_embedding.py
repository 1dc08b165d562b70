"""Image embedding: a vector of an image, for comparison with others, also of classes that were never trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from app.recipe.base import TaskOption
from app.recipe.data.sources import ColumnsField, Data, HfData, ImageData, ImageFolderData, ParquetData, Table
from app.recipe.losses.base import LossSpec
from app.recipe.losses.class_vectors import ClassTerm
from app.recipe.losses.embeddings import PairTerm
from app.recipe.problem import Problem
from app.recipe.students.hugging_face import IMAGE_MODEL_TYPES
from app.recipe.tasks.base import MainMetric, TaskSpec


class ImageEmbeddingSpec(TaskSpec):
    """Vectors of images, learned from classes, from pairs or from a teacher, and evaluated on other classes or on
    pairs."""

    name = "image-embedding"
    reads = ("images",)
    formats = (ImageData, ParquetData, ImageFolderData, HfData)
    model_types = IMAGE_MODEL_TYPES
    answers = "vectors"
    sized_by = "targets"
    metrics = {
        **{"map_at_r": True, "map": True, "recall_at_1": True, "recall_at_5": True, "recall_at_10": True},
        **{"auc": True, "tar_at_far_1e-2": True, "tar_at_far_1e-3": True, "class_mean_accuracy": True},
    }
    main_metric = MainMetric("map_at_r", higher_is_better=True, stand_in="auc")
    options = frozenset(
        {
            *("embedding", "embedding.dimensions", "recipe.samples_per_class", "recipe.hard_negatives"),
            *("data.unseen_classes", "data.second_key", "data.eval_second_key"),
            *("data.eval_input_columns", "data.eval_label_columns"),
        }
    )
    assumed_outputs = 128

    def fits(self, option: type[TaskOption]) -> bool:
        """What fits vectors of images, but no losses of several views of an image."""
        return super().fits(option) and not self.why_unfit(option)

    def why_unfit(self, option: type[TaskOption]) -> str:
        compares = issubclass(option, LossSpec) and option.views > 1
        return "it compares views of an image, and batches have one of each" if compares else ""

    def rows_per_sample(self, data: Data) -> int:
        return 2 if data.has_pairs() else 1

    def loss_problems(self, data: Data, term: TaskOption, path: str) -> Iterator[Problem]:
        """Losses of classes with pairs, and losses of pairs without."""
        kind, paired = type(term).model_fields["kind"].default, data.has_pairs()
        if paired and isinstance(term, ClassTerm):
            found = f"{kind} compares images with classes, and samples are pairs, without classes"
            yield Problem(f"{path}.kind", found, "pair-score, or single images with classes")
        elif not paired and isinstance(term, PairTerm) and self.fits(type(term)):
            found = f"{kind} compares the two images of a pair, and samples are single images"
            yield Problem(f"{path}.kind", found, "pairs of images, or a loss of classes such as normface")

    def column_problems(self, data: Table) -> Iterator[Problem]:
        """One column of images, or two of pairs, and one of classes or of pairs' labels."""
        yield from super().column_problems(data)
        own = [name for name in get_args(ColumnsField) if getattr(data, f"eval_{name}") is not None]
        if own and data.holds_out:
            yield Problem("data.eval", "is missing, and columns of it are named", "a file, or no columns of its own")
        for param in ("data.train", *(["data.eval"] if own else [])):
            yield from _number_problems(data, param)


def _number_problems(data: Table, param: str) -> Iterator[Problem]:
    """Too many columns of the file that the field `param` names."""
    found = data.at(param)
    if (count := len(found.input_columns)) > 2:
        yield Problem(data.field("input_columns", param), f"names {count} columns", "one column, or two of pairs")
    if (count := len(found.label_columns)) > 1:
        yield Problem(data.field("label_columns", param), f"names {count} columns", "one column")
