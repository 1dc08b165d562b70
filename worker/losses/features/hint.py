"""FitNets (1412.6550): the student's features match the teacher's, through adapters."""

from __future__ import annotations

import torch
from torch import Tensor

from app.recipe.losses.features import Hint
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.features.activations import vectors
from worker.losses.features.adapters import Joiner


class HintTerm:
    """Mean squared difference over the entries of each row, summed over the pairs.

    Padding tokens of texts do not count.
    """

    def __init__(self, spec: Hint, builder: LossBuilder) -> None:
        joiner = Joiner(builder, spec.name, spec.teacher, spec.adapter, spec.reduction)
        self.joints = [joiner.join(pair, f"pairs[{index}]") for index, pair in enumerate(spec.pairs)]

    def __call__(self, inputs: LossInputs) -> Tensor:
        sides = [joint(inputs) for joint in self.joints]
        tokens = inputs.features.student_tokens
        return torch.stack([mean_squares(student, teacher, tokens) for student, teacher in sides]).sum(0)


def mean_squares(student: Tensor, teacher: Tensor, tokens: Tensor | None) -> Tensor:
    """Of each row (B,), from features (B, ...) of one shape; `tokens` (B, S) bool: those that aren't padding, of which
    alone a feature of tokens has its mean."""
    squares = (student - teacher).square()
    if tokens is None or squares.shape[:-1] != tokens.shape:
        return squares.flatten(1).mean(1)
    return vectors(squares, "mean", tokens).mean(1)
