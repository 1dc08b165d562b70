"""The head of cosines (1704.06369)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.students.heads import NormalisedHead
from worker.students.heads.registry import HEADS
from worker.tensors import at_least_float32

EPS = 1e-6
"""Least length that vectors are divided by: the cosines of features of zeros are 0, and their gradient is finite."""


@HEADS.register(NormalisedHead)
class CosineHead(nn.Linear):
    """scale times the cosines of features (N, D) with the rows of the weight (C, D); lengths in at least float32."""

    def __init__(self, spec: NormalisedHead, width: int, outputs: int) -> None:
        super().__init__(width, outputs, bias=False)
        self.first_scale = spec.scale
        self.log_ratio = nn.Parameter(torch.zeros(1)) if spec.learned else None
        """Logarithm of the scale's share of the first one, (1,); none: the scale is fixed."""

    @property
    def scale(self) -> Tensor | float:
        """The scale, (1,) if it is learned."""
        return self.first_scale if self.log_ratio is None else self.first_scale * self.log_ratio.exp()

    def forward(self, input: Tensor) -> Tensor:
        features, classes = (F.normalize(at_least_float32(each), dim=-1, eps=EPS) for each in (input, self.weight))
        return self.scale * F.linear(features, classes)
