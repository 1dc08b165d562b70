"""How well scores tell outliers from samples of the distribution, as papers on their detection report it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from worker.metrics.anomalies import auroc

KEPT = 0.95
"""Share of the samples of the distribution that a threshold for `tnr_at_tpr95` accepts at least."""


class Detection(NamedTuple):
    """Figures of a detector, between 0 and 1."""

    tnr_at_tpr95: float
    """Share of the outliers below the highest threshold that at least 95 % of the other samples reach."""
    auroc: float
    """Area under the ROC curve."""
    detection_accuracy: float
    """Largest mean of the two shares that one threshold separates correctly."""
    aupr_in: float
    """Average precision of finding the samples of the distribution by high scores."""
    aupr_out: float
    """Average precision of finding the outliers by low scores."""


def detection(inside: Tensor, outside: Tensor) -> Detection:
    """Figures of scores that are higher for samples of the distribution, `inside` (n,), than for outliers, `outside`
    (m,), both floating, on the CPU and not empty."""
    from sklearn.metrics import average_precision_score, roc_curve  # it takes a second, and few jobs need it

    scores, is_inside = torch.cat([inside, outside]).double(), torch.zeros(len(inside) + len(outside), dtype=torch.bool)
    is_inside[: len(inside)] = True
    labels, values = is_inside.numpy(), scores.numpy()
    false, true, _ = roc_curve(labels, values, drop_intermediate=False)
    return Detection(
        tnr_at_tpr95=1.0 - float(false[(true >= KEPT).argmax()]),
        auroc=auroc(scores, is_inside),
        detection_accuracy=float((true + 1.0 - false).max() / 2),
        aupr_in=float(average_precision_score(labels, values)),
        aupr_out=float(average_precision_score(~labels, -values)),
    )
