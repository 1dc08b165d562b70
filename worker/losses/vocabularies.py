"""Terms between vocabularies that have nothing in common."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import Uld
from worker.losses.base import LossInputs, teacher_logits
from worker.tensors import at_least_float32


class UldTerm:
    """sum |p_(i) - q_(i)| over the sorted probabilities (2402.12030): the optimal transport between both, when bringing
    mass from any token to any other costs the same.

    The sides may have different numbers of columns. A column with a logit of -inf has no probability, and is as if it
    were not there. Sorting holds two copies of each side's logits.
    """

    def __init__(self, spec: Uld) -> None:
        self._temperature = spec.temperature

    def __call__(self, inputs: LossInputs) -> Tensor:
        ours = self._sorted(at_least_float32(inputs.student))
        theirs = self._sorted(teacher_logits(inputs))
        width = max(ours.shape[1], theirs.shape[1])
        ours, theirs = (F.pad(side, (0, width - side.shape[1])) for side in (ours, theirs))
        return (theirs - ours).abs().sum(-1)

    def _sorted(self, logits: Tensor) -> Tensor:
        """Probabilities (B, C), the largest first."""
        return F.softmax(logits / self._temperature, dim=-1).sort(dim=-1, descending=True).values
