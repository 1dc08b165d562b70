"""Losses and masks of hard patches mining (arXiv 2304.05919).

N images of P patches of side S, numbered row by row; M of an image's patches are masked, and V are visible.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-6
"""Added to variances, and to the sigmoid of the relative loss."""


class PatchMask(NamedTuple):
    """Numbers of the patches of each image."""

    visible: Tensor
    """(N, V) int64."""
    masked: Tensor
    """(N, M) int64."""


def masked_count(patches: int, ratio: float) -> int:
    """Masked ones of so many patches."""
    return patches - int(patches * (1 - ratio))


def hard_count(masked: int, share: float, epoch: int, epochs: float) -> int:
    """How many of the masked patches are the hardest ones in an epoch, counted from 0, of `epochs`: their share grows
    linearly to `share`."""
    return int(masked * (share * min((epoch + 1) / epochs, 1.0)))


def choose_mask(predicted: Tensor, noise: Tensor, masked: int, hard: int) -> PatchMask:
    """Mask the `hard` patches of each image with the highest `predicted` loss, and those of the others with the highest
    `noise`, so that `masked` are; both are (N, P) floating."""
    hardest = predicted.topk(hard, dim=1).indices
    order = noise.scatter(1, hardest, torch.inf).argsort(dim=1)
    visible = noise.shape[1] - masked
    return PatchMask(order[:, :visible], order[:, visible:])


def patch_pixels(images: Tensor, side: int) -> Tensor:
    """Pixels (N, P, S S C) of each patch of images (N, C, H, W) whose sides are multiples of `side`, of any dtype; the
    channels of a pixel are consecutive."""
    count, channels, height, width = images.shape
    grid = images.reshape(count, channels, height // side, side, width // side, side)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, side * side * channels)


def of_patches(values: Tensor, patches: Tensor) -> Tensor:
    """Rows (N, M, ...) of values (N, P, ...) of any dtype, at `patches` (N, M) int64."""
    index = patches.view(*patches.shape, *[1] * (values.ndim - 2))
    return values.gather(1, index.expand(*patches.shape, *values.shape[2:]))


def standardised(values: Tensor) -> Tensor:
    """Floating values (..., D) with mean 0 and an unbiased variance of 1 in each row; a constant row becomes 0."""
    variance, mean = torch.var_mean(values, dim=-1, keepdim=True)
    return (values - mean) / (variance + EPSILON).sqrt()


def patch_losses(predicted: Tensor, pixels: Tensor, *, normalise: bool) -> Tensor:
    """Mean squared error (N, M) of each patch, from predicted and given pixels (N, M, D), floating; these are
    standardised first if `normalise`."""
    return (predicted - (standardised(pixels) if normalise else pixels)).square().mean(-1)


class PairLosses(NamedTuple):
    """Sums over the pairs of patches of one image of which the first has the higher loss."""

    loss: Tensor
    """A floating scalar."""
    ordered: Tensor
    """Pairs whose first patch has the higher prediction, too: an int64 scalar."""
    pairs: Tensor
    """Their number, an int64 scalar."""


def relative_losses(predicted: Tensor, losses: Tensor, *, stable: bool) -> PairLosses:
    """Of `predicted` and true `losses` (N, M), floating. `stable`: as log-sigmoids, without `EPSILON`.

    The authors' code also adds every pair in the other order, with the same loss, so the mean is the same.
    """
    harder = losses.unsqueeze(2) > losses.unsqueeze(1)
    difference = predicted.unsqueeze(2) - predicted.unsqueeze(1)
    values = -F.logsigmoid(difference) if stable else -(difference.sigmoid() + EPSILON).log()
    return PairLosses(values.where(harder, 0).sum(), (harder & (difference > 0)).sum(), harder.sum())


def absolute_losses(predicted: Tensor, losses: Tensor) -> Tensor:
    """Squared errors (N, M) of `predicted` from the `losses` (N, M), floating, that are standardised in each image."""
    return (predicted - standardised(losses)).square()
