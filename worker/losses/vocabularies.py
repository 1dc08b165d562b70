"""Terms between unrelated vocabularies."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import Uld
from worker.losses.base import LossInputs, teacher_logits
from worker.tensors import at_least_float32


class UldTerm:
    """sum |p_(i) - q_(i)| over the sorted probabilities (2402.12030): the optimal transport cost between both, if
    moving mass costs the same between any two tokens.

    Student and teacher may have different numbers of columns. A column with a logit of -inf has probability 0 and has
    no effect. Sorting holds two copies of each side's logits.
    """

    def __init__(self, spec: Uld) -> None:
        self._temperature = spec.temperature

    def __call__(self, inputs: LossInputs) -> Tensor:
        student = self._sorted(at_least_float32(inputs.student))
        teacher = self._sorted(teacher_logits(inputs))
        width = max(student.shape[1], teacher.shape[1])
        student, teacher = (F.pad(side, (0, width - side.shape[1])) for side in (student, teacher))
        return (teacher - student).abs().sum(-1)

    def _sorted(self, logits: Tensor) -> Tensor:
        """Probabilities (B, C) in descending order."""
        return F.softmax(logits / self._temperature, dim=-1).sort(dim=-1, descending=True).values
