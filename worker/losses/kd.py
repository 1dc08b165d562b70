"""Classic distillation of softened distributions (Hinton et al., 1503.02531), and its limit, logits matching."""

from __future__ import annotations

from torch import Tensor

from app.recipe.losses import LogitMse
from worker.losses.base import LossInputs
from worker.losses.softened import SoftenedTerm, kl, prepare


class KdTerm(SoftenedTerm):
    """T^2 KL(softmax(teacher / T) || softmax(student / T)); the factor keeps the gradient's size over T."""

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return kl(teacher, student) * self.spec.temperature**2


class LogitMseTerm:
    """1 / (2 C) |z - v|^2 of the logits, or of what is left of them without their means (2109.06458).

    As T grows, `kd` tends to the centred form with an error of O(1 / T); the plain form adds half the squared
    difference of the means. Masked columns count neither in the sum nor in C.
    """

    def __init__(self, spec: LogitMse) -> None:
        self.centered = spec.centered

    def __call__(self, inputs: LossInputs) -> Tensor:
        student, teacher = prepare(inputs, standardized=False)
        masked = student.isneginf() | teacher.isneginf()
        classes = (~masked).sum(-1, keepdim=True).clamp(min=1)
        gap = student.masked_fill(masked, 0.0) - teacher.masked_fill(masked, 0.0)
        if self.centered:
            gap = (gap - gap.sum(-1, keepdim=True) / classes).masked_fill(masked, 0.0)
        return (gap.square() / (2 * classes)).sum(-1)
