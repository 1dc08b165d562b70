"""FitNets (1412.6550): the student's features match the teacher's, through adapters."""

from __future__ import annotations

import torch
from torch import Tensor

from app.recipe.losses.features import Hint
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.features.adapters import Joiner


class HintTerm:
    """Mean squared difference over the entries of each row, summed over the pairs.

    Padding tokens count like all others unless `reduction` is `mean`.
    """

    def __init__(self, spec: Hint, builder: LossBuilder) -> None:
        joiner = Joiner(builder, spec.name, spec.teacher, spec.adapter, spec.reduction)
        self.joints = [joiner.join(pair, f"pairs[{index}]") for index, pair in enumerate(spec.pairs)]

    def __call__(self, inputs: LossInputs) -> Tensor:
        sides = [joint(inputs) for joint in self.joints]
        return torch.stack([(student - teacher).square().flatten(1).mean(1) for student, teacher in sides]).sum(0)
