"""Diagnostics of trained models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden import Case
from tests.golden.comparison import Comparison
from worker.diagnostics.features import pooled
from worker.diagnostics.mahalanobis import towards
from worker.metrics.mahalanobis import ClassGaussians, PooledCovariance, whitening_of

RESNET_STD = (0.2023, 0.1994, 0.2010)
"""Of the pixels' channels, by which the authors divide a change of their residual networks' inputs."""


def mahalanobis(case: Case) -> Iterator[Comparison]:
    """Means, precisions and scores of two layers, of inputs moved along the gradient of each layer's score."""
    if "precision" in case.outputs:
        samples = case.inputs["X"]
        whitening = whitening_of(torch.cov(samples.T, correction=0))
        yield Comparison("mahalanobis", "precision", whitening @ whitening.T, case.outputs["precision"])
        return
    deviations = RESNET_STD if case.hyper["net_type"] == "resnet" else (1.0,)
    step = case.hyper["magnitude"] / torch.tensor(deviations, dtype=torch.float64).view(1, -1, 1, 1)
    for layer in range(2):
        features = case.inputs[f"feat{layer}_train"]
        moments = PooledCovariance(case.hyper["num_classes"], features.shape[1])
        for rows in torch.arange(len(features)).split(7):
            moments.add(features[rows], case.inputs["train_y"][rows])
        gaussians = moments.gaussians()
        found = {f"mean{layer}": gaussians.means, f"prec{layer}": gaussians.precision}
        scores = partial(_scores, case, layer, gaussians)
        found[f"score{layer}"] = scores(towards(scores, case.inputs["test_x"], step))
        for name, value in found.items():
            yield Comparison("mahalanobis", name, value, case.outputs[name])


def _scores(case: Case, layer: int, gaussians: ClassGaussians, samples: Tensor) -> Tensor:
    return gaussians.scores(_features(case, samples)[layer])


def _features(case: Case, samples: Tensor) -> list[Tensor]:
    first = F.conv2d(samples, case.inputs["conv1_w"], case.inputs["conv1_b"], padding=1).tanh()
    second = F.conv2d(first, case.inputs["conv2_w"], case.inputs["conv2_b"], padding=1).tanh()
    return [pooled(first), pooled(second)]
