"""Gaussian naive Bayes with one variance per feature, as a linear layer (2302.02334)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from app.recipe.students.architectures import ZOO
from app.recipe.students.heads import NbDiagHead
from worker.metrics.class_means import ClassMeans
from worker.students.heads.registry import HEADS

LEAST = 1e-6
"""Least variance, as a share of the largest."""


@HEADS.register(NbDiagHead)
def _layer(spec: NbDiagHead, width: int, outputs: int) -> nn.Module:
    return nn.Linear(width, outputs)


class ClassMoments(ClassMeans):
    """Counts, means and sums of squared deviations (C, D) of the features of each class, float64."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__(classes, width)
        self.squares = torch.zeros(classes, width, dtype=torch.float64)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add floating `features` (n, D) with `labels` (n,) int64."""
        added = self.merge(features, labels)
        self.squares.index_add_(0, labels, added.within.square())
        self.squares += added.weight * added.apart.square()

    @property
    def variances(self) -> Tensor:
        """Population variances (C, D); 0 for a class without samples."""
        return self.squares / self.counts.clamp(min=1).unsqueeze(1)


def linear_form(moments: ClassMoments, smoothing: float) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,), float64, of the log-posterior, up to a number that all classes share. The features'
    mean is subtracted first, so that large features cost no digits. A class without samples has the bias -inf."""
    shares = moments.counts / moments.counts.sum()
    variance = shares @ moments.variances + smoothing
    variance = variance.clamp(min=LEAST * float(variance.max())).clamp(min=torch.finfo(torch.float32).tiny)
    centre = shares @ moments.means
    apart = moments.means - centre
    weight = apart / variance
    return weight, shares.log() - 0.5 * (apart * weight).sum(1) - weight @ centre


@torch.no_grad()
def fit(layer: nn.Linear, batches: Iterable[tuple[Tensor, Tensor]], smoothing: float) -> None:
    """Set the weights of `layer` from batches of features (n, D), floating, and labels (n,) int64, of every class."""
    moments = ClassMoments(layer.out_features, layer.in_features)
    for features, labels in batches:
        moments.add(features.cpu(), labels.cpu())
    weight, bias = linear_form(moments, smoothing)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


def spec_of(architecture: object) -> NbDiagHead | None:
    """The head of a network if it is of this kind."""
    head = architecture.head if isinstance(architecture, ZOO) else None
    return head if isinstance(head, NbDiagHead) else None
