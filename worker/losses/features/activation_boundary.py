"""Activation boundaries (1811.03233): the student's neurons are active where the teacher's are, with a margin."""

from __future__ import annotations

from torch import Tensor

from app.recipe.losses.features import ActivationBoundary
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.features.adapters import Joiner
from worker.losses.features.overhaul import weigh_stages


class ActivationBoundaryTerm:
    """Squared hinge of the student's features before activation, summed over entries and stages.

    A feature of the teacher that is exactly 0 counts as not active.
    """

    def __init__(self, spec: ActivationBoundary, builder: LossBuilder) -> None:
        self.margin = spec.margin
        joiner = Joiner(builder, spec.name, spec.teacher, spec.adapter)
        self.joints = [joiner.join(pair, f"pairs[{index}]") for index, pair in enumerate(spec.pairs)]

    def __call__(self, inputs: LossInputs) -> Tensor:
        sides = [joint(inputs) for joint in self.joints]
        return weigh_stages([hinge_squares(student, teacher, self.margin) for student, teacher in sides])


def hinge_squares(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """Sum of squared hinges of each row (B,), from floating features (B, ...) of one shape."""
    signed = student.where(teacher > 0.0, -student)
    return (margin - signed).clamp(min=0.0).square().flatten(1).sum(1)
