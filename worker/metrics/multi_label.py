"""Metrics of multi-label predictions: ranking, decisions, calibration, similarity to a teacher.

N samples, C classes. Logits (N, C) of any floating dtype are converted to float64; labels (N, C) are 0 or 1. A label is
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
    """Bounds of a metric, both float64 scalars."""

    low: Tensor
    high: Tensor


def mean_average_precision(logits: Tensor, labels: Tensor) -> Tensor | None:
    """Mean average precision over the classes with a positive sample, a scalar, from logits and labels (N, C); none: no
    class has one."""
    found = average_precision_bounds(logits, labels)
    return None if found is None else found.low


def average_precision_bounds(logits: Tensor, labels: Tensor, slack: float = 0.0) -> Bounds | None:
    """Bounds of `mean_average_precision` if each of the logits (N, C) may be off by half of `slack`; labels are (N, C).

    Average precision is the mean over the positive samples of the precision at their score: the share of positives
    among the samples with at least that score (Zhu, "Recall, Precision and Average Precision", 2004).
    """
    found = [_precision(scores, present, slack) for scores, present in _columns(logits, labels)]
    if not found:
        return None
    return Bounds(*(torch.stack(sides).mean() for sides in zip(*found, strict=True)))


def _columns(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores (N,) float64 and labels (N,) bool of each class with a positive sample."""
    present = labels.T.contiguous() > 0
    for number in present.any(1).nonzero().flatten().tolist():
        yield logits[:, number].double(), present[number]


def _precision(scores: Tensor, present: Tensor, slack: float) -> Bounds:
    positive, negative = scores[present].sort().values, scores[~present].sort().values
    hits, wrong = (_no_less(side, positive) for side in (positive, negative))
    if not slack:
        precision = (hits / (hits + wrong)).mean()
        return Bounds(precision, precision)
    surely, maybe = positive + slack, positive - slack
    fewest = _no_less(positive, surely) + 1  # itself among them
    low = fewest / (fewest + _no_less(negative, maybe))
    most = _no_less(positive, maybe)
    high = most / (most + _no_less(negative, surely))
    return Bounds(low.mean(), high.mean())


def _no_less(values: Tensor, than: Tensor) -> Tensor:
    """Number of the ascending `values` that are at least as large as each of `than`, float64."""
    return (len(values) - torch.searchsorted(values, than)).double()


def micro_f1(logits: Tensor, labels: Tensor) -> Tensor:
    """F1, a scalar, of all decisions together, from logits and labels (N, C): twice the hits divided by the numbers of
    true and predicted labels together; 0 if true are neither."""
    hits, predicted, true = (each.sum() for each in _decisions(logits, labels))
    return 2 * hits / (predicted + true).clamp(min=1)


def macro_f1(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean, a scalar, of the F1 of each class with a positive or predicted sample, from logits and labels (N, C); 0 if
    true is no such class."""
    hits, predicted, true = _decisions(logits, labels)
    count = predicted + true
    return (2 * hits / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)


def _decisions(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts by class (C,) float64: hits, predicted labels, true labels."""
    predicts, true = logits > 0, labels > 0
    hits, predicted, positive = (each.double().sum(0) for each in (predicts & true, predicts, true))
    return hits, predicted, positive


def precision_at(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Mean over the samples, a scalar, of the share of true labels among the `k` likeliest classes, from logits and
    labels (N, C); `k` is at most C, and for equal logits the lower class comes first."""
    likeliest = logits.double().sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return (labels.gather(-1, likeliest) > 0).double().mean()


def calibration_error(logits: Tensor, labels: Tensor, bins: int) -> Tensor:
    """Mean over the classes, a scalar, of the expected calibration error (1706.04599) of their probability, from logits
    and labels (N, C): |frequency - probability| per bin, weighted with the bin's samples.

    `bins` are equally wide, each without its lower and with its upper edge.
    """
    probabilities, present = logits.double().sigmoid().T.contiguous(), (labels.T > 0).double().contiguous()
    columns = zip(probabilities, present, strict=True)
    return torch.stack([equal_width_bins(*column, bins).expected_error() for column in columns]).mean()


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy over samples and classes, a scalar in nats, from logits and labels (N, C)."""
    return F.binary_cross_entropy_with_logits(logits.double(), labels.double())


def recall_counts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Samples of each class, and how many of them are predicted: both (C,) int64, from logits and labels (N, C)."""
    true = labels > 0
    return true.sum(0), (true & (logits > 0)).sum(0)


def agreement(logits: Tensor, teacher: Tensor) -> Tensor:
    """Share of the decisions about all labels of all samples, a scalar, in which student's and teacher's logits (N, C)
    agree."""
    return ((logits > 0) == (teacher > 0)).double().mean()


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Mean over samples and classes of KL(teacher || student) of a label's probability, a scalar in nats, from
    student's and teacher's logits (N, C)."""
    student_logits, teacher_logits = logits.double(), teacher.double()
    present = teacher_logits.sigmoid() * (F.logsigmoid(teacher_logits) - F.logsigmoid(student_logits))
    absent = (-teacher_logits).sigmoid() * (F.logsigmoid(-teacher_logits) - F.logsigmoid(-student_logits))
    return (present + absent).mean()
