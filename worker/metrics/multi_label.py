"""Measures of answers with any number of labels: ranking, decisions, calibration, likeness to a teacher.

N samples, C classes. Logits (N, C) of any floating dtype are taken to float64; labels (N, C) are 0 or 1. A label is
predicted where its probability, the sigmoid of its logit, is above 1/2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.metrics.calibration import equal_width_bins


class Bounds(NamedTuple):
    """Between which a measure lies, both scalars."""

    low: Tensor
    high: Tensor


def mean_average_precision(logits: Tensor, labels: Tensor) -> Tensor | None:
    """Mean over the classes with a positive sample of their average precision, a scalar, from logits (N, C)
    and labels (N, C); none: no class has one."""
    found = average_precision_bounds(logits, labels)
    return None if found is None else found.low


def average_precision_bounds(logits: Tensor, labels: Tensor, slack: float = 0.0) -> Bounds | None:
    """Between which that scalar lies where every one of the logits (N, C) may be off by half of `slack`.

    Average precision is the mean over the positive samples of the precision at their score: of the samples that score
    no less, the share that is positive (Zhu, "Recall, Precision and Average Precision", 2004).
    """
    found = [_precision(scores, there, slack) for scores, there in _columns(logits, labels)]
    if not found:
        return None
    return Bounds(*(torch.stack(sides).mean() for sides in zip(*found, strict=True)))


def _columns(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores (N,) float64 and labels (N,) bool of each class with a positive sample."""
    there = labels.T.contiguous() > 0
    for number in there.any(1).nonzero().flatten().tolist():
        yield logits[:, number].double(), there[number]


def _precision(scores: Tensor, there: Tensor, slack: float) -> Bounds:
    own, others = scores[there].sort().values, scores[~there].sort().values
    hits, wrong = (_no_less(side, own) for side in (own, others))
    if not slack:
        precision = (hits / (hits + wrong)).mean()
        return Bounds(precision, precision)
    surely, maybe = own + slack, own - slack
    fewest = _no_less(own, surely) + 1  # itself among them
    low = fewest / (fewest + _no_less(others, maybe))
    most = _no_less(own, maybe)
    high = most / (most + _no_less(others, surely))
    return Bounds(low.mean(), high.mean())


def _no_less(values: Tensor, than: Tensor) -> Tensor:
    """How many of the ascending `values` are at least as large as each of `than`, float64."""
    return (len(values) - torch.searchsorted(values, than)).double()


def micro_f1(logits: Tensor, labels: Tensor) -> Tensor:
    """F1, a scalar, of all decisions together, from logits and labels (N, C): twice the hits by the labels that are
    there and those that are predicted; 0 where there are neither."""
    hits, predicted, there = (each.sum() for each in _decisions(logits, labels))
    return 2 * hits / (predicted + there).clamp(min=1)


def macro_f1(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean, a scalar, of the F1 of each class that has a positive sample or is predicted for one, from logits and
    labels (N, C); 0 if there is no such class."""
    hits, predicted, there = _decisions(logits, labels)
    count = predicted + there
    return (2 * hits / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)


def _decisions(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By class (C,) float64: samples that have it and are given it, that are given it, that have it."""
    given, there = logits > 0, labels > 0
    hits, predicted, positive = (each.double().sum(0) for each in (given & there, given, there))
    return hits, predicted, positive


def precision_at(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Mean over the samples, a scalar, of the share of their `k` likeliest classes that they have, from logits and
    labels (N, C); `k` is C at most, and of equal logits those with lower numbers come first."""
    likeliest = logits.double().sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return (labels.gather(-1, likeliest) > 0).double().mean()


def calibration_error(logits: Tensor, labels: Tensor, bins: int) -> Tensor:
    """Mean over the classes, a scalar, of the expected calibration error (1706.04599) of their probability, from logits
    and labels (N, C): |frequency - probability| per bin, weighted with the bin's samples.

    `bins` are equally wide, each without its lower and with its upper edge.
    """
    probabilities, there = logits.double().sigmoid().T.contiguous(), (labels.T > 0).double().contiguous()
    columns = zip(probabilities, there, strict=True)
    return torch.stack([equal_width_bins(*column, bins).expected_error() for column in columns]).mean()


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy over samples and classes, a scalar in nats, from logits and labels (N, C)."""
    return F.binary_cross_entropy_with_logits(logits.double(), labels.double())


def recall_counts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Samples that have each class, and how many of them are given it: both (C,) int64, from logits and labels
    (N, C)."""
    there = labels > 0
    return there.sum(0), (there & (logits > 0)).sum(0)


def agreement(logits: Tensor, teacher: Tensor) -> Tensor:
    """Share of the decisions about all labels of all samples, a scalar, in which both sides' logits (N, C) agree."""
    return ((logits > 0) == (teacher > 0)).double().mean()


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Mean over samples and classes of KL(teacher || student) of a label's probability, a scalar in nats, from both
    sides' logits (N, C)."""
    given, wanted = logits.double(), teacher.double()
    there = wanted.sigmoid() * (F.logsigmoid(wanted) - F.logsigmoid(given))
    absent = (-wanted).sigmoid() * (F.logsigmoid(-wanted) - F.logsigmoid(-given))
    return (there + absent).mean()
