"""L1 normalisation (2411.10948): by the mean absolute deviation instead of the standard deviation.

    y = weight * (x - mean) / (mean |x - mean| + eps) + bias

The gradient is that of the formula, with sign(0) = 0. Computed in at least float32; results have the input's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.recipe.students.layers import L1BatchNorm, L1LayerNorm
from worker.tensors import at_least_float32

MOMENTUM = 0.1
"""Share of a batch in the running statistics, as in torch's batch norm."""
IMAGE_AXES = (0, 2, 3)


class MeanDeviationNorm(nn.Module):
    """Over the last `axes` axes of each sample, the first of which is the channels'."""

    def __init__(self, spec: L1LayerNorm, channels: int, axes: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.axes, self.eps = tuple(range(-axes, 0)), spec.eps

    def forward(self, x: Tensor) -> Tensor:
        """Floating (..., C, H, W) of images or (..., C) of tokens to the same shape and dtype."""
        wide, shape = at_least_float32(x), (-1, *[1] * (len(self.axes) - 1))
        centred = wide - wide.mean(self.axes, keepdim=True)
        scaled = centred / (centred.abs().mean(self.axes, keepdim=True) + self.eps)
        return (scaled * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)


class BatchDeviationNorm(nn.Module):
    """Over the samples and pixels of a batch; in evaluation, and for a batch with one value per channel, by running
    statistics."""

    running_mean: Tensor
    running_deviation: Tensor

    def __init__(self, spec: L1BatchNorm, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_deviation", torch.ones(channels))
        self.eps = spec.eps

    def forward(self, x: Tensor) -> Tensor:
        """Floating images (N, C, H, W) to the same shape and dtype."""
        wide = at_least_float32(x)
        if self.training and x.numel() > x.shape[1]:
            mean = wide.mean(IMAGE_AXES)
            centred = wide - _per_channel(mean)
            deviation = centred.abs().mean(IMAGE_AXES)
            self._record(mean, deviation)
        else:
            centred, deviation = wide - _per_channel(self.running_mean), self.running_deviation
        scaled = centred / _per_channel(deviation + self.eps)
        return (scaled * _per_channel(self.weight) + _per_channel(self.bias)).to(x.dtype)

    @torch.no_grad()
    def _record(self, mean: Tensor, deviation: Tensor) -> None:
        self.running_mean.lerp_(mean.to(self.running_mean), MOMENTUM)
        self.running_deviation.lerp_(deviation.to(self.running_deviation), MOMENTUM)


def _per_channel(values: Tensor) -> Tensor:
    """(C,) as (C, 1, 1)."""
    return values.view(-1, 1, 1)
