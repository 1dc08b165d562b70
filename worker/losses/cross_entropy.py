"""Cross-entropy with the labels."""

from __future__ import annotations

from torch import Tensor

from app.recipe.losses import CrossEntropy
from worker.kernels.references import cross_entropy
from worker.losses.base import LossInputs
from worker.tensors import at_least_float32


class CrossEntropyTerm:
    """`worker.kernels.references.cross_entropy` of the student's logits with the labels."""

    def __init__(self, spec: CrossEntropy) -> None:
        self.smoothing = spec.label_smoothing

    def __call__(self, inputs: LossInputs) -> Tensor:
        return cross_entropy(at_least_float32(inputs.student), inputs.labels, self.smoothing)
