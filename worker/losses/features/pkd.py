"""Patient KD (1908.09355): vectors of inner layers have the direction of the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses.features import Pkd
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.features.adapters import Joiner


class PkdTerm:
    """Mean squared difference of vectors of length 1, over the entries of each row and the pairs."""

    def __init__(self, spec: Pkd, builder: LossBuilder) -> None:
        joiner = Joiner(builder, spec.kind, spec.teacher, "none", spec.reduction)
        self.joints = [joiner.join(pair, f"pairs[{index}]") for index, pair in enumerate(spec.pairs)]

    def __call__(self, inputs: LossInputs) -> Tensor:
        sides = [joint(inputs) for joint in self.joints]
        squares = [(F.normalize(student) - F.normalize(teacher)).square() for student, teacher in sides]
        return torch.stack([each.mean(1) for each in squares]).mean(0)
