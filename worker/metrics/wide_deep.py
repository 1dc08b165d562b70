"""Classifiers that infinitely wide networks become as their depth grows (2204.14126).

n training samples, m others, C classes, L layers; activations are sums of normalised Hermite polynomials with
coefficients a_k, whose squares sum to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

DEPTH_OF_RANGE = 5.0
"""Largest absolute value of an activation's argument; polynomials grow fast beyond it."""


def optimal_coefficients(alpha: float) -> list[float]:
    """a_0 to a_3 of the activation whose singular kernel has the exponent `alpha`, at least 2, with D'(1) = 2."""
    first = 2 ** (-alpha / 4)
    return [0.0, first, math.sqrt(1 - 2 ** (1 - alpha / 2)), first]


def singular_exponent(coefficients: Sequence[float]) -> float:
    """-4 log|a_1| / log D'(1): the exponent of the kernel in the limit, where a_0 = 0 and a_1 is not 0."""
    slope = sum(power * value**2 for power, value in enumerate(coefficients))
    return -4 * math.log(abs(coefficients[1])) / math.log(slope)


def activation(values: Tensor, coefficients: Sequence[float]) -> Tensor:
    """sum_k a_k He_k(x) / sqrt(k!) of `values` of any shape, floating, within -5 and 5."""
    values = values.clamp(-DEPTH_OF_RANGE, DEPTH_OF_RANGE)
    before, current, total = torch.zeros_like(values), torch.ones_like(values), torch.zeros_like(values)
    for power, coefficient in enumerate(coefficients):
        total = total + coefficient / math.sqrt(math.factorial(power)) * current
        before, current = current, values * current - power * before
    return total


def tangent_kernel(cosines: Tensor, coefficients: Sequence[float], depth: int) -> Tensor:
    """The neural tangent kernel after `depth` layers, of the shape of the `cosines` (m, n) float64 of the samples:
    Theta_l = Theta_(l-1) D'(Sigma_(l-1)) + Sigma_l and Sigma_l = D(Sigma_(l-1)), D(t) = sum_k a_k^2 t^k."""
    covariance = kernel = cosines
    for _ in range(depth):
        slope = _polynomial(covariance, [power * value**2 for power, value in enumerate(coefficients)][1:])
        covariance = _polynomial(covariance, [value**2 for value in coefficients])
        kernel = kernel * slope + covariance
    return kernel


def _polynomial(values: Tensor, factors: Sequence[float]) -> Tensor:
    total = torch.zeros_like(values)
    for factor in reversed(factors):
        total = total * values + factor
    return total


def kernel_regression(among: Tensor, between: Tensor, targets: Tensor) -> Tensor:
    """Values (m, C) float64 for samples with kernels `between` (m, n) them and the training samples, whose kernels are
    `among` (n, n) and whose targets are (n, C), all float64."""
    solution: Tensor = torch.linalg.solve(among, targets)
    return between @ solution


def majority(labels: Tensor, classes: int) -> int:
    """The most frequent of the classes (n,) int64, the lowest of several."""
    return int(labels.bincount(minlength=classes).argmax())


def nearest(distances: Tensor, labels: Tensor) -> Tensor:
    """Class (m,) int64 of the nearest training sample, the first of several, by distances (m, n) floating."""
    return labels[distances.argmin(1)]


def singular_kernel(distances: Tensor, labels: Tensor, classes: int, alpha: float) -> Tensor:
    """Class (m,) int64 with the largest sum of 1 / distance ^ alpha over its training samples, by distances (m, n)
    float64 and labels (n,) int64; of training samples at distance 0, the first one's."""
    logs = -alpha * distances.log()
    scores = torch.stack([torch.logsumexp(logs[:, labels == number], dim=1) for number in range(classes)], dim=1)
    return scores.argmax(1).where(distances.amin(1) > 0, nearest(distances, labels))
