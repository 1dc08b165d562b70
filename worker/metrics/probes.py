"""Probes of frozen features: how well simple classifiers tell classes apart by a model's vectors.

Vectors (N, D) have any floating dtype; computed in float64 on the CPU, without random draws. Classes are numbered from
0 without gaps, K of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.metrics.labelled_vectors import every_other

MOST = 20_000
"""Samples that are used; of more, so many are taken at equal distances."""
NEIGHBOURS = 5
AT_ONCE = 2**22
"""Cosines that are sorted at a time."""
SMOOTHING = 1e-9
"""Share of the largest variance that is added to all variances of naive Bayes."""
ROUNDS, TOLERANCE = 200, 1e-9


class Probed(NamedTuple):
    """Samples to fit a probe on, and samples that it classifies."""

    fitted: Tensor
    """(M, D) float64."""
    classes: Tensor
    """Their classes (M,) int64."""
    rest: Tensor
    """(Q, D) float64."""
    answers: Tensor
    """Their classes (Q,) int64."""


def probes(vectors: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """`linear_accuracy`, `knn_accuracy` and `bayes_accuracy`, float64 scalars, of vectors with labels (N,) int64; empty
    if there are not two classes, or none has two samples. Of each class every other sample, from the first on, is
    fitted, and the rest is classified."""
    chosen = torch.linspace(0, len(labels) - 1, min(MOST, len(labels)), dtype=torch.float64).round().long()
    rows, numbers = vectors.detach().cpu().double()[chosen], labels.cpu()[chosen]
    place, stored = every_other(numbers)
    if int(place.max()) == 0 or bool(stored.all()):
        return {}
    probed = Probed(rows[stored], place[stored], rows[~stored], place[~stored])
    found = {"linear": linear_probe(probed), "knn": nearest_neighbours(probed), "bayes": naive_bayes(probed)}
    return {f"{name}_accuracy": (guess == probed.answers).double().mean() for name, guess in found.items()}


def linear_probe(probed: Probed, strength: float = 1.0) -> Tensor:
    """Classes (Q,) int64 by multinomial logistic regression on standardised features: the sum of the cross-entropies
    plus half the squared weights divided by `strength`, without the offsets, is minimised from 0 by L-BFGS."""
    mean, std = probed.fitted.mean(0), probed.fitted.std(0, correction=0)
    scale = torch.where(std > 0, std, 1.0)
    rows, rest = (probed.fitted - mean) / scale, (probed.rest - mean) / scale
    count = int(probed.classes.max()) + 1
    weight = torch.zeros(count, rows.shape[1], dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, offset],
        max_iter=ROUNDS,
        tolerance_grad=TOLERANCE,
        tolerance_change=TOLERANCE**2,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(rows, weight, offset), probed.classes)
        loss = loss + weight.square().sum() / (2 * strength * len(rows))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.inference_mode(mode=False), torch.enable_grad():
        optimizer.step(objective)  # type: ignore[no-untyped-call]
    return F.linear(rest, weight, offset).argmax(1)


def nearest_neighbours(probed: Probed, neighbours: int = NEIGHBOURS) -> Tensor:
    """Classes (Q,) int64 by the majority of the nearest by the cosine; of equally many the lowest class counts."""
    stored, rest = (F.normalize(rows, dim=-1) for rows in (probed.fitted, probed.rest))
    count, kept = int(probed.classes.max()) + 1, min(neighbours, len(stored))
    found = []
    for part in torch.split(rest, max(1, AT_ONCE // len(stored))):
        nearest = (part @ stored.T).topk(kept, dim=1).indices
        found.append(F.one_hot(probed.classes[nearest], count).sum(1).argmax(1))
    return torch.cat(found)


def naive_bayes(probed: Probed) -> Tensor:
    """Classes (Q,) int64 by a Gaussian for each feature and class, with the classes' shares as priors."""
    count = torch.bincount(probed.classes).double()
    sums = torch.zeros(len(count), probed.fitted.shape[1], dtype=torch.float64)
    means = sums.index_add(0, probed.classes, probed.fitted) / count.unsqueeze(1)
    squares = (probed.fitted - means[probed.classes]).square()
    floor = SMOOTHING * probed.fitted.var(0, correction=0).max().clamp(min=torch.finfo(torch.float64).tiny)
    variances = sums.index_add(0, probed.classes, squares) / count.unsqueeze(1) + floor
    constant = (count / count.sum()).log() - (2 * math.pi * variances).log().sum(1) / 2
    exponents = [
        (probed.rest - mean).square() @ (1 / variance) / 2 for mean, variance in zip(means, variances, strict=True)
    ]
    return (constant - torch.stack(exponents, 1)).argmax(1)
