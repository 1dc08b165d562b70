"""Classic distillation of softened distributions (Hinton et al., 1503.02531)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import Kd
from worker.losses.base import Rows, at_least_float32, teacher_logits


class KdTerm:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)); the factor keeps the gradient's size over T."""

    def __init__(self, spec: Kd) -> None:
        self.temperature = spec.temperature

    def __call__(self, rows: Rows) -> Tensor:
        student = F.log_softmax(at_least_float32(rows.student) / self.temperature, dim=-1)
        teacher = F.log_softmax(teacher_logits(rows) / self.temperature, dim=-1)
        return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * self.temperature**2
