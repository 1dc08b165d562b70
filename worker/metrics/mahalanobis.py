"""Mahalanobis score of features (1807.03888): how near they lie to the nearest class of a Gaussian classifier.

n features of a batch, C classes, D numbers of a feature, r the rank of the covariance.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from worker.metrics.class_means import ClassMeans


class ClassGaussians(NamedTuple):
    """Normal distributions of the classes that have samples, with one covariance."""

    means: Tensor
    """(C, D) float64."""
    whitening: Tensor
    """(D, r) float64: its product with its transpose is the pseudo-inverse of the covariance."""

    @property
    def precision(self) -> Tensor:
        """The pseudo-inverse of the covariance, (D, D) float64."""
        return self.whitening @ self.whitening.T

    def scores(self, features: Tensor) -> Tensor:
        """max_c -1/2 (f - mean_c)^T precision (f - mean_c) of each feature, (n,) float64, from floating (n, D) on the
        CPU; higher is nearer. Differentiable."""
        found, centres = features.double() @ self.whitening, self.means @ self.whitening
        with torch.no_grad():
            nearest = torch.cdist(found, centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        return -0.5 * (found - centres[nearest]).square().sum(1)


class PooledCovariance(ClassMeans):
    """Means of the classes and the scatter (D, D) within them, float64."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__(classes, width)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add floating `features` (n, D) with `labels` (n,) int64, on the CPU."""
        added = self.merge(features, labels)
        self.scatter += added.within.T @ added.within + (added.weight * added.apart).T @ added.apart

    def gaussians(self) -> ClassGaussians:
        """The maximum-likelihood covariance of all samples, without its eigenvalues below D machine epsilons of the
        largest."""
        return ClassGaussians(self.means[self.counts > 0], whitening_of(self.scatter / self.counts.sum()))


def whitening_of(covariance: Tensor) -> Tensor:
    """(D, r) float64 whose product with its transpose is the pseudo-inverse of a covariance (D, D) float64."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > len(values) * torch.finfo(values.dtype).eps * values.abs().amax()
    whitening: Tensor = vectors[:, kept] / values[kept].sqrt()
    return whitening
