"""Normalisation layers. Their class names contain `Norm`, by which optimizers find them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.recipe.students.layers import BatchNorm, GroupNorm, LayerNorm, NoNorm, RmsNorm
from worker.students.layers.registry import LayerRegistry

IMAGE_NORMS = LayerRegistry[[int]]()
"""Norms of images (N, C, H, W), built from their channels."""
TOKEN_NORMS = LayerRegistry[[int]]()
"""Norms of tokens (N, S, D) or (N, D), built from their width."""
RMS_EPSILON = 1e-6
"""Added to the mean of squares."""


@IMAGE_NORMS.register(BatchNorm)
def _batch(spec: BatchNorm, channels: int) -> nn.Module:
    return BatchNorm2d(channels)


@IMAGE_NORMS.register(LayerNorm)
def _layer_of_images(spec: LayerNorm, channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


@IMAGE_NORMS.register(GroupNorm)
def _group(spec: GroupNorm, channels: int) -> nn.Module:
    return nn.GroupNorm(spec.groups, channels)


@IMAGE_NORMS.register(RmsNorm)
def _rms_of_images(spec: RmsNorm, channels: int) -> nn.Module:
    return RootMeanSquareNorm(channels, axes=3)


@IMAGE_NORMS.register(NoNorm)
def _none(spec: NoNorm, channels: int) -> nn.Module:
    return nn.Identity()


@TOKEN_NORMS.register(LayerNorm)
def _layer(spec: LayerNorm, width: int) -> nn.Module:
    return nn.LayerNorm(width)


@TOKEN_NORMS.register(RmsNorm)
def _rms(spec: RmsNorm, width: int) -> nn.Module:
    return RootMeanSquareNorm(width, axes=1)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that accepts a batch with one value per channel.

    Such a batch (a last batch of one sample, reduced to one pixel) has no variance; it is normalised by the running
    statistics, and does not change them.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            return torch.batch_norm(
                input, self.weight, self.bias, self.running_mean, self.running_var, False, 0.0, self.eps, False
            )
        return super().forward(input)


class RootMeanSquareNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * weight (1910.07467): the mean is over the last `axes` axes, the first of which is
    the channels'. Computed in at least float32; the result has the input's dtype."""

    def __init__(self, channels: int, axes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.axes = tuple(range(-axes, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Floating (..., C, H, W) of images or (..., C) of tokens to the same shape and dtype."""
        wide = x.float() if x.dtype.itemsize < 4 else x
        scaled = wide * torch.rsqrt(wide.square().mean(self.axes, keepdim=True) + RMS_EPSILON)
        return (scaled * self.weight.view(-1, *[1] * (len(self.axes) - 1))).to(x.dtype)
