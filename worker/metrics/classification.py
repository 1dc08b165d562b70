"""Metrics of a classifier: accuracy, probabilities, calibration, similarity to a teacher.

N samples, C classes. Logits (N, C) of any floating dtype are taken to float64; labels are (N,) int64. Confidence is the
probability of the predicted class; a tie goes to the class with the lowest number.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.metrics.calibration import equal_mass_bins, equal_width_bins


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of samples, a scalar, whose predicted class is the label; from logits (N, C) and labels (N,)."""
    return _mean(logits.argmax(-1) == labels)


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of -log p(label), a scalar in nats, from logits (N, C) and labels (N,)."""
    return F.cross_entropy(logits.double(), labels)


def brier_score(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over samples of the squared distance between probabilities and label, summed over classes: a scalar from 0
    to 2, from logits (N, C) and labels (N,).

    Brier, "Verification of forecasts expressed in terms of probability", 1950, in its form for several classes.
    """
    distance = _probabilities(logits) - F.one_hot(labels, logits.shape[-1])
    return distance.square().sum(-1).mean()


def calibration_error(logits: Tensor, labels: Tensor, bins: int) -> Tensor:
    """Expected calibration error (arXiv 1706.04599), a scalar, from logits (N, C) and labels (N,): |accuracy -
    confidence| per bin, weighted with the bin's samples.

    `bins` are equally wide, each without its lower and with its upper edge.
    """
    return equal_width_bins(*choices(logits, labels), bins).expected_error()


def adaptive_calibration_error(logits: Tensor, labels: Tensor, bins: int) -> Tensor:
    """Calibration error, a scalar, over bins that hold equally many samples, from logits (N, C) and labels (N,)
    (AdaECE, arXiv 2002.09437, of the predicted class alone).

    Samples are sorted by confidence and split into `bins` parts, of which the first ones are longer by one where N is
    no multiple. The plain mean over the parts is taken, as in 1904.01685; fewer samples than bins: one part each.
    """
    return equal_mass_bins(*choices(logits, labels), bins).mean_error()


def classwise_calibration_error(logits: Tensor, labels: Tensor, bins: int) -> Tensor:
    """Calibration error of each class's probability (C,), whether predicted or not (1910.12656), from logits (N, C) and
    labels (N,); its mean is the usual figure."""
    probabilities, hits = _probabilities(logits), F.one_hot(labels, logits.shape[-1]).double()
    columns = zip(probabilities.T.contiguous(), hits.T, strict=True)
    return torch.stack([equal_width_bins(*column, bins).expected_error() for column in columns])


def class_counts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Samples of each class, and how many of them were recognised: both (C,) int64, from logits (N, C), labels (N,)."""
    classes = logits.shape[-1]
    recognised = labels[logits.argmax(-1) == labels]
    return torch.bincount(labels, minlength=classes), torch.bincount(recognised, minlength=classes)


def agreement(logits: Tensor, teacher: Tensor) -> Tensor:
    """Share of samples, a scalar, for which student and teacher predict the same class; from their logits (N, C)."""
    return _mean(logits.argmax(-1) == teacher.argmax(-1))


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Mean KL(teacher || student) over samples, a scalar in nats, at temperature 1, from their logits (N, C)."""
    log_p, log_t = F.log_softmax(logits.double(), dim=-1), F.log_softmax(teacher.double(), dim=-1)
    return F.kl_div(log_p, log_t, reduction="batchmean", log_target=True)


def choices(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence (N,) and whether the prediction is right (N,), both float64, from logits (N, C) and labels (N,)."""
    return _probabilities(logits).amax(-1), (logits.argmax(-1) == labels).double()


def _probabilities(logits: Tensor) -> Tensor:
    return logits.double().softmax(-1)


def _mean(hits: Tensor) -> Tensor:
    return hits.double().mean()
