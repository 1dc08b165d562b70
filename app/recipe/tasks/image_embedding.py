"""Image embedding: a vector of an image, for comparison with others, also of classes that were never trained on."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.base import TaskOption
from app.recipe.data.sources import HfData, ImageData, ImageFolderData, ParquetData, Table
from app.recipe.losses.base import LossSpec
from app.recipe.problem import Problem
from app.recipe.students.hugging_face import IMAGE_MODEL_TYPES
from app.recipe.tasks.base import MainMetric, TaskSpec


class ImageEmbeddingSpec(TaskSpec):
    """Vectors of images, learned from classes or from a teacher, and evaluated on other classes."""

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
    main_metric = MainMetric("map_at_r", higher_is_better=True)
    options = frozenset(
        {
            *("embedding", "embedding.dimensions", "data.unseen_classes"),
            *("recipe.samples_per_class", "recipe.hard_negatives"),
        }
    )
    assumed_outputs = 128

    def fits(self, option: type[TaskOption]) -> bool:
        """What fits vectors of images, but no losses of several views of an image."""
        return super().fits(option) and not self.why_unfit(option)

    def why_unfit(self, option: type[TaskOption]) -> str:
        compares = issubclass(option, LossSpec) and option.views > 1
        return "it compares views of an image, and batches have one of each" if compares else ""

    def column_problems(self, data: Table) -> Iterator[Problem]:
        """One column of images, and one of classes."""
        yield from super().column_problems(data)
        for field, names in (("input_columns", data.input_columns), ("label_columns", data.label_columns)):
            if len(names) > 1:
                yield Problem(f"data.{field}", f"names {len(names)} columns", "one column")
