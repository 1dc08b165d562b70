"""Softened targets for a tolerant teacher (2111.07047), by a truncated principal component analysis.

Fitted on the training targets alone; evaluation uses the original labels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from app.recipe.data.targets import SoftLandmarks
from worker.errors import UserError


class ShapeModel(NamedTuple):
    """Main directions of variation of lists of C numbers, float64 on the CPU."""

    mean: Tensor
    """(C,) float64."""
    directions: Tensor
    """(C, R) float64, orthonormal columns; the sign of each is arbitrary."""
    variances: Tensor
    """(R,) float64, unbiased variances of the targets along each direction, descending."""

    def soften(self, targets: Tensor, clip: float) -> Tensor:
        """`targets` (N, C) projected on the directions, in each at most `clip` deviations from the mean; same dtype."""
        limit = clip * self.variances.sqrt()
        offsets = ((targets.double().cpu() - self.mean) @ self.directions).clamp(-limit, limit)
        return (self.mean + offsets @ self.directions.T).to(targets)


def fit_shapes(targets: Tensor, variance: float) -> ShapeModel:
    """The fewest directions that explain more than the share `variance` of floating `targets` (N, C).

    Takes memory for C x C numbers. Raises UserError (`invalid_data`) if the targets do not vary.
    """
    values = targets.double().cpu()
    mean = values.mean(0)
    centered = values - mean
    ascending, directions = torch.linalg.eigh(centered.T @ centered / max(len(values) - 1, 1))
    variances, directions = ascending.flip(0).clamp(min=0.0), directions.flip(1)
    if not variances.sum() > 0.0:
        raise UserError(
            "invalid_data",
            "all targets are the same, so they can't be softened; accepted: targets that vary",
            "data.train",
        )
    shares = variances.cumsum(0) / variances.sum()
    count = min(int((shares <= variance).sum()) + 1, len(variances))
    return ShapeModel(mean, directions[:, :count], variances[:count])


def soft_landmarks(targets: Tensor, spec: SoftLandmarks) -> Tensor:
    """Training targets (N, C), or keypoints (N, K, 2), softened; same shape and floating dtype."""
    flat = targets.flatten(1)
    return fit_shapes(flat, spec.variance).soften(flat, spec.clip).view_as(targets)
