"""Cross-entropy with the labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import CrossEntropy
from worker.losses.base import LossInputs
from worker.tensors import at_least_float32


class CrossEntropyTerm:
    """-sum_c y_c log p_c, where y is the label mixed with a uniform distribution by `label_smoothing`.

    Masked columns (logits of -inf) take no part in the uniform distribution; a label that is masked costs infinitely.
    """

    def __init__(self, spec: CrossEntropy) -> None:
        self.smoothing = spec.label_smoothing

    def __call__(self, inputs: LossInputs) -> Tensor:
        logits = at_least_float32(inputs.student)
        logs, soft = F.log_softmax(logits, dim=-1), inputs.labels.is_floating_point()
        if not soft:
            hard = logs.gather(-1, inputs.labels.unsqueeze(-1)).squeeze(-1)
            if self.smoothing == 0.0:
                return -hard
        masked = logits.isneginf()
        finite = logs.masked_fill(masked, 0.0)
        if soft:
            hard = (inputs.labels.to(logits.dtype) * finite).sum(-1)
        even = finite.sum(-1) / (~masked).sum(-1)
        return -(1.0 - self.smoothing) * hard - self.smoothing * even
