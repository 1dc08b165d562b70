"""Self-supervision: a backbone that is trained on images without labels."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.base import TaskOption
from app.recipe.data.sources import HfData, ImageData, ImageFolderData, ParquetData, Table
from app.recipe.losses.class_vectors import ClassTerm
from app.recipe.losses.embeddings import PairTerm
from app.recipe.problem import Problem
from app.recipe.students.hugging_face import IMAGE_MODEL_TYPES
from app.recipe.tasks.base import MainMetric, TaskSpec


class SelfSupervisedSpec(TaskSpec):
    """Vectors of images, learned from the images alone; labels are read for evaluation only."""

    name = "self-supervised"
    reads = ("images",)
    formats = (ImageData, ParquetData, ImageFolderData, HfData)
    model_types = IMAGE_MODEL_TYPES
    answers = "vectors"
    sized_by = "targets"
    needs_labels = False
    compares_views = True
    metrics = {
        **{"linear_accuracy": True, "knn_accuracy": True, "bayes_accuracy": True},
        **{"view_recall_at_1": True, "view_loss": False},
    }
    main_metric = MainMetric("linear_accuracy", higher_is_better=True, stand_in="view_recall_at_1")
    options = frozenset({"embedding", "embedding.dimensions", "recipe.pseudo_labels"})
    assumed_outputs = 128

    def fits(self, option: type[TaskOption]) -> bool:
        """What fits vectors of images, but no losses of labels."""
        return super().fits(option) and not self.why_unfit(option)

    def why_unfit(self, option: type[TaskOption]) -> str:
        return "it learns from labels" if issubclass(option, ClassTerm | PairTerm) else ""

    def column_problems(self, data: Table) -> Iterator[Problem]:
        """One column of images, and at most one of classes."""
        for field, names in (("input_columns", data.input_columns), ("label_columns", data.label_columns)):
            if len(names) > 1:
                yield Problem(f"data.{field}", f"names {len(names)} columns", "one column")
