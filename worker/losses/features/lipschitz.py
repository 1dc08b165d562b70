"""LONDON (2108.12905): the spectral norm between consecutive stages matches the teacher's."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses.features import Lipschitz
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.features.activations import same_size
from worker.losses.features.adapters import Joiner, require_kind
from worker.losses.features.overhaul import weigh_stages

LEAST = 1e-12
"""Norm of the iterated vector below which features count as dead, and have no gradient."""


class LipschitzTerm:
    """Squared differences of the norms of each row, over consecutive stages."""

    def __init__(self, spec: Lipschitz, builder: LossBuilder) -> None:
        self.iterations = spec.iterations
        for index, pair in enumerate(spec.pairs):
            require_kind(builder, builder.student(pair.student), (4,), f"pairs[{index}].student")
        joiner = Joiner(builder, spec.name, spec.teacher, spec.adapter)
        self.joints = [joiner.join(pair, f"pairs[{i}]", widths_differ=True) for i, pair in enumerate(spec.pairs)]

    def __call__(self, inputs: LossInputs) -> Tensor:
        students, teachers = zip(*(joint(inputs) for joint in self.joints), strict=True)
        gaps = [
            (self._norm(*student) - self._norm(*teacher)).square()
            for student, teacher in zip(pairwise(students), pairwise(teachers), strict=True)
        ]
        return weigh_stages(gaps) / 2.0  # a stage before the last weighs half of it, and the last one ends no pair

    def _norm(self, first: Tensor, second: Tensor) -> Tensor:
        matrix = transmitting_matrix(first, second)
        return spectral_norm(matrix, self.start(matrix), self.iterations)

    def start(self, matrix: Tensor) -> Tensor:
        """Start vector (B, C, 1) of the power iteration for a floating matrix (B, C, D): ones, as in the authors' code
        for ImageNet."""
        return matrix.new_ones(*matrix.shape[:2], 1)


def transmitting_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Transmitting matrix (B, C, D) of floating maps (B, C, H, W) and (B, D, h, w) of two stages, over the positions of
    the smaller size."""
    first, second = (feature.flatten(2) for feature in same_size(first, second))
    return first @ second.mT / first.shape[2]


def spectral_norm(matrix: Tensor, start: Tensor, iterations: int) -> Tensor:
    """Spectral norm (B,) of a floating `matrix` (B, C, D), by power iteration from `start` (B, C, 1), with gradient
    through every step."""
    square, vector = matrix @ matrix.mT, start
    norm = matrix.new_zeros(len(matrix))
    for _ in range(iterations):
        product = square @ vector
        norm = torch.linalg.vector_norm(product, dim=(1, 2))
        vector = F.normalize(product, dim=1, eps=LEAST)
    return norm.clamp(min=LEAST).sqrt()
