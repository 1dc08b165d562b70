"""Hinge losses of a support vector machine (1712.03541), with its regularised weights."""

from __future__ import annotations

import torch
from torch import Tensor

from app.recipe.losses import L2Svm
from worker.losses.base import LossInputs, target_column
from worker.losses.builder import LossBuilder
from worker.tensors import at_least_float32


class L2SvmTerm:
    """Hinge losses of each row. The mean square of the head's weights is added to every row, so that the mean over the
    valid rows has it once, however a batch is split."""

    def __init__(self, spec: L2Svm, builder: LossBuilder) -> None:
        """Raises UserError (`invalid_job`) if there are no weights to regularise."""
        self.spec, self.head = spec, builder.student_head
        if spec.regularisation > 0.0 and self.head is None:
            raise builder.refuse("the student has no last linear layer; accepted: 0", "regularisation")

    def __call__(self, inputs: LossInputs) -> Tensor:
        logits, labels = at_least_float32(inputs.student), target_column(inputs.labels)
        losses = self.spec.c * self._hinges(logits, labels).mean(-1)
        if self.spec.regularisation == 0.0 or self.head is None:
            return losses
        weight = at_least_float32(self.head.weight)
        if not inputs.student.requires_grad:  # a stage that does not train the student
            weight = weight.detach()
        return losses + self.spec.regularisation * weight.square().mean()

    def _hinges(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, C), float32 or float64."""
        if self.spec.form == "one-against-all":
            signs = torch.full_like(logits, -1.0).scatter(-1, labels, 1.0)
            found = (self.spec.margin - signs * logits).relu()
        else:
            found = (self.spec.margin + logits - logits.gather(-1, labels)).relu().scatter(-1, labels, 0.0)
        return found.square() if self.spec.hinge == "squared" else found
