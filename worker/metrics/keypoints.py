"""Metrics of predicted keypoints.

N samples of K points each. Predictions and targets are (N, K, 2) or (N, 2 K), x before y, of any floating dtype and in
one unit; they are converted to float64 on the CPU. The error of a sample is the mean distance of its points, divided by
a length of the sample, its normaliser.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.errors import UserError

THRESHOLD = 0.1
"""Error above which a sample counts as failed; the usual one for faces."""


def normalisers(targets: Tensor, pair: tuple[int, int] | None = None) -> Tensor:
    """Length (N,) float64 by which the errors of each sample are divided.

    With a `pair` of point numbers, from 0: the distance of these two points (of 68 facial points 36 and 45 are the
    outer corners of the eyes). Without: the root of the area of the smallest upright box around all points.

    Raises UserError (`invalid_data`) for a sample of length 0, or an invalid number of a point.
    """
    shapes = _points(targets)
    lengths = _distances(shapes, pair) if pair else (shapes.amax(1) - shapes.amin(1)).prod(-1).sqrt()
    if not (lengths > 0.0).all():
        where = (
            f"points {pair[0]} and {pair[1]} are equal" if pair else "all points are on one horizontal or vertical line"
        )
        sample = int((~(lengths > 0.0)).nonzero()[0])
        raise UserError(
            "invalid_data", f"the length that normalises the error of sample {sample} is 0: {where}", "data"
        )
    return lengths


def sample_errors(predictions: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Normalised error of each sample (N,) float64, with `normalisers` (N,)."""
    distances: Tensor = torch.linalg.vector_norm(_points(predictions) - _points(targets), dim=-1)
    return distances.mean(-1) / lengths


def normalised_mean_error(errors: Tensor) -> Tensor:
    """Mean of the samples' errors (N,), a float64 scalar."""
    return errors.mean()


def failure_rate(errors: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Share of samples whose error (N,) is above `threshold`, a float64 scalar."""
    return (errors > threshold).double().mean()


def area_under_curve(errors: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Area under the share of samples with at most an error, from 0 to `threshold`, divided by `threshold`.

    A float64 scalar: 1 if all errors (N,) are 0, 0 if all samples fail. It is exact: the curve is a step function with
    a step per sample.
    """
    return (1.0 - errors / threshold).clamp(min=0.0).mean()


def _distances(shapes: Tensor, pair: tuple[int, int]) -> Tensor:
    last = shapes.shape[1] - 1
    if not all(0 <= number <= last for number in pair):
        message = f"there are no points {pair[0]} and {pair[1]}; accepted: two different numbers from 0 to {last}"
        raise UserError("invalid_data", message, "data")
    distances: Tensor = torch.linalg.vector_norm(shapes[:, pair[0]] - shapes[:, pair[1]], dim=-1)
    return distances


def _points(values: Tensor) -> Tensor:
    """(N, K, 2) in float64 on the CPU."""
    return values.detach().double().cpu().reshape(len(values), -1, 2)
