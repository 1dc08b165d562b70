"""Metrics of anomaly detection: how well scores tell anomalous images, and pixels, from normal ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MOST_PIXELS = 2**24
"""Pixels that are compared; of more, those of so many images as have them are taken at equal distances."""
LIMIT = 0.3
"""Largest false positive rate that counts for the overlap of regions."""


def auroc(scores: Tensor, anomalous: Tensor) -> float:
    """Area under the ROC curve of floating `scores` of any shape, higher for what is `anomalous` (bool, the same
    shape), of which there are both kinds; a tie counts half."""
    from sklearn.metrics import roc_auc_score  # it takes a second, and most jobs have no anomalies

    return float(roc_auc_score(anomalous.flatten().cpu().numpy(), scores.flatten().cpu().numpy()))


def some_images(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Floating maps (N, H', W') and masks (N, H, W) of images with at most `MOST_PIXELS` pixels."""
    count = min(len(masks), max(1, MOST_PIXELS // masks[0].numel()))
    chosen = torch.linspace(0, len(masks) - 1, count, dtype=torch.float64).round().long()
    return maps[chosen], masks[chosen]


def per_region_overlap(maps: Tensor, masks: Tensor, limit: float = LIMIT) -> float:
    """PRO (1911.02357, section 5.2): area under the curve of the mean overlap of anomalous regions over the false
    positive rate of normal pixels, up to a rate of `limit` and divided by it.

    For a threshold, the overlap of a region is the share of its pixels whose value, in floating `maps` (N, H, W), is at
    least that; a region is a part of a mask (N, H, W) bool that hangs together, corners included. There are normal
    pixels, and regions.
    """
    inside = torch.from_numpy(_region_shares(masks.cpu().numpy())).flatten()
    outside = (~masks.cpu()).flatten().double()
    values, order = maps.cpu().flatten().sort(descending=True)
    last = torch.cat([values[1:] != values[:-1], torch.ones(1, dtype=torch.bool)])  # of those with the same value
    rate, overlap = (
        torch.cat([part.new_zeros(1), part[order].cumsum(0)[last]]) for part in (outside / outside.sum(), inside)
    )
    return _area_until(limit, rate, overlap)


def _region_shares(masks: np.ndarray) -> np.ndarray:
    """For each anomalous pixel its share of its region's pixels, divided by the number of regions; (N, H, W) float64,
    0 for normal ones."""
    from scipy.ndimage import label

    shares, regions = np.zeros(masks.shape), 0
    for image, mask in enumerate(masks):
        numbers, found = label(mask, structure=np.ones((3, 3)))
        sizes = np.bincount(numbers.ravel(), minlength=found + 1)
        shares[image][mask] = 1.0 / sizes[numbers[mask]]
        regions += found
    return shares / regions


def _area_until(limit: float, x: Tensor, y: Tensor) -> float:
    """Mean of y, linear between its points (P,) float64, over x from 0 to `limit`; x (P,) ascends from 0 to 1."""
    end = int(torch.searchsorted(x, limit, right=True))
    step = (limit - x[end - 1]) / (x[end] - x[end - 1])
    at_limit = y[end - 1] + step * (y[end] - y[end - 1])
    xs, ys = torch.cat([x[:end], x.new_tensor([limit])]), torch.cat([y[:end], at_limit.view(1)])
    return float(torch.trapezoid(ys, xs) / limit)
