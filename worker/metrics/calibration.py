"""Calibration of a classifier: accuracy by bins of confidence, and temperature scaling.

N samples, C classes, B bins. Everything is computed in float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST, HIGHEST = math.exp(-4), math.exp(6)
"""Bounds of a temperature."""
PRECISION = 1e-12
"""Relative change of a temperature below which the search ends."""
MOST_STEPS = 100


class ReliabilityBins(NamedTuple):
    """Bins in ascending order of confidence; means of empty bins are 0."""

    samples: Tensor
    """Number of samples (B,) int64."""
    confidence: Tensor
    """Mean confidence (B,) float64."""
    accuracy: Tensor
    """Share of samples that are right (B,) float64."""

    @property
    def gaps(self) -> Tensor:
        """|accuracy - confidence| (B,) float64; 0 for empty bins."""
        return (self.accuracy - self.confidence).abs()

    def expected_error(self) -> Tensor:
        """Mean gap weighted with the samples of each bin, a float64 scalar."""
        return (self.gaps * self.samples).sum() / self.samples.sum()

    def mean_error(self) -> Tensor:
        """Plain mean of the gaps of bins with samples, a float64 scalar."""
        return self.gaps.sum() / (self.samples > 0).sum()

    def largest_error(self) -> Tensor:
        """Largest gap, a float64 scalar."""
        return self.gaps.max()


def equal_width_bins(confidence: Tensor, correct: Tensor, bins: int) -> ReliabilityBins:
    """Bins of equal width, each without its lower and with its upper edge; the first one has 0, too.

    `confidence` (N,) in 0 to 1 and `correct` (N,), 1 where right, are float64.
    """
    edges = torch.arange(1, bins, dtype=torch.float64) / bins
    index = torch.bucketize(confidence, edges)  # a value on an edge belongs to the bin below it
    return _binned(confidence, correct, index, bins)


def equal_mass_bins(confidence: Tensor, correct: Tensor, bins: int) -> ReliabilityBins:
    """Bins with equally many samples: sorted by confidence (stable) and split, the first parts longer by one where N is
    no multiple. Fewer samples than bins: one bin each.

    `confidence` (N,) in 0 to 1 and `correct` (N,), 1 where right, are float64.
    """
    parts = min(bins, len(confidence))
    index = torch.empty(len(confidence), dtype=torch.int64)
    for number, part in enumerate(confidence.argsort(stable=True).tensor_split(parts)):
        index[part] = number
    return _binned(confidence, correct, index, parts)


def _binned(confidence: Tensor, correct: Tensor, index: Tensor, bins: int) -> ReliabilityBins:
    count = torch.bincount(index, minlength=bins)
    sums = (torch.zeros(bins, dtype=torch.float64).index_add_(0, index, each) for each in (confidence, correct))
    means = (each / count.clamp(min=1) for each in sums)
    return ReliabilityBins(count, *means)


class Temperature(NamedTuple):
    """Temperature by which logits are divided."""

    value: float
    at_bound: bool
    """True if the likelihood grows beyond the bounds: logits that are always right, or no better than chance."""


def fit_temperature(logits: Tensor, labels: Tensor) -> Temperature:
    """The temperature between `LOWEST` and `HIGHEST` with the smallest negative log-likelihood (1706.04599) of logits
    (N, C), of any floating dtype, and labels (N,) int64.

    The likelihood is convex in 1 / T, so Newton's method finds the root of its slope, within a bracket of the optimum.
    """
    values = logits.double()
    low, high = 1 / HIGHEST, 1 / LOWEST
    if _slope(values, labels, low)[0] >= 0:
        return Temperature(HIGHEST, at_bound=True)
    if _slope(values, labels, high)[0] <= 0:
        return Temperature(LOWEST, at_bound=True)
    inverse = 1.0
    for _ in range(MOST_STEPS):
        slope, curvature = _slope(values, labels, inverse)
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = inverse - slope / curvature if curvature > 0 else low
        step = step if low < step < high else math.sqrt(low * high)
        if abs(step - inverse) <= PRECISION * inverse:
            return Temperature(1 / step, at_bound=False)
        inverse = step
    return Temperature(1 / inverse, at_bound=False)


def _slope(logits: Tensor, labels: Tensor, inverse: float) -> tuple[float, float]:
    """First and second derivative of the mean negative log-likelihood with respect to 1 / T."""
    probabilities = F.softmax(logits * inverse, dim=-1)
    finite = logits.masked_fill(logits.isneginf(), 0.0)  # their probability is 0
    mean = (probabilities * finite).sum(-1)
    variance = (probabilities * (finite - mean.unsqueeze(-1)).square()).sum(-1)
    target = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return float((mean - target).mean()), float(variance.mean())
