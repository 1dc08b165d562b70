"""Anomaly detection: which images, and which of their pixels, differ from the normal images of training."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.base import TaskOption
from app.recipe.data.sources import HfData, ImageData, ImageFolderData, ParquetData, Table
from app.recipe.losses.base import LossSpec
from app.recipe.optimizers import AdamW, Cosine
from app.recipe.problem import Problem
from app.recipe.students.hugging_face import IMAGE_MODEL_TYPES
from app.recipe.students.inputs import ImageInput, Input
from app.recipe.tasks.base import CLASS_BYTES, MainMetric, TaskSpec, TrainingDefaults

NORMAL_CLASSES = ("0", "normal", "good")
"""Names of the classes of normal images, unless the job has others."""


class AnomalyDetectionSpec(TaskSpec):
    """A score of an image and a map of its parts, learned from normal images alone; labels and masks are read for
    evaluation."""

    name = "anomaly-detection"
    reads = ("images",)
    formats = (ImageData, ParquetData, ImageFolderData, HfData)
    model_types = IMAGE_MODEL_TYPES
    answers = "anomalies"
    sized_by = "targets"
    needs_labels = False
    takes_teachers = False
    reconstructs = True
    metrics = {"image_auroc": True, "pixel_auroc": True, "pro": True, "reconstruction_cosine": True}
    main_metric = MainMetric("image_auroc", higher_is_better=True, stand_in="reconstruction_cosine")
    options = frozenset({"data.normal_classes", "data.mask_key", "data.mask_column"})
    assumed_outputs = 1 + 64**2
    fresh = TrainingDefaults(
        "a decoder of frozen features: rate, weight decay, warm-up and final rate of INP-Former (2503.02424), with"
        " AdamW in place of StableAdamW",
        AdamW(lr=1e-3, weight_decay=1e-4),
        Cosine(warmup_steps=100, final_ratio=0.1),
    )

    def fits(self, option: type[TaskOption]) -> bool:
        """No losses with a teacher."""
        return super().fits(option) and not self.why_unfit(option)

    def why_unfit(self, option: type[TaskOption]) -> str:
        taught = issubclass(option, LossSpec) and option.needs_teacher is not False
        return "it needs a teacher, and the student has its own encoder instead" if taught else ""

    def column_problems(self, data: Table) -> Iterator[Problem]:
        """One column of images, and at most one of classes."""
        for field, names in (("input_columns", data.input_columns), ("label_columns", data.label_columns)):
            if len(names) > 1:
                yield Problem(f"data.{field}", f"names {len(names)} columns", "one column")

    def target_bytes(self, sample: Input, outputs: int) -> int:
        """Of a mask, or of the label without one."""
        return max(CLASS_BYTES, sample.height * sample.width) if isinstance(sample, ImageInput) else CLASS_BYTES
