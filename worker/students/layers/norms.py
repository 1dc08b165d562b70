"""Normalisation layers. Their class names contain `Norm`, by which optimizers find them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.recipe.students.layers import (
    BatchNorm,
    CrmsNorm,
    GroupNorm,
    L1BatchNorm,
    L1LayerNorm,
    LayerNorm,
    NoNorm,
    PowerNorm,
    RmsNorm,
    UnifiedNorm,
)
from worker.kernels import token_norms
from worker.kernels.token_norms import NormWeights
from worker.students.layers.deviation_norms import BatchDeviationNorm, MeanDeviationNorm
from worker.students.layers.power_norm import QuadraticNorm
from worker.students.layers.registry import LayerRegistry
from worker.students.layers.window_norm import WindowNorm
from worker.tensors import at_least_float32

IMAGE_NORMS = LayerRegistry[[int]]()
"""Norms of images (N, C, H, W), built from their channels."""
TOKEN_NORMS = LayerRegistry[[int]]()
"""Norms of tokens (N, S, D) or (N, D), built from their width."""
OF_IMAGES, OF_TOKENS = 3, 1
"""Axes that a norm of each sample alone averages over, counted from the last."""


@IMAGE_NORMS.register(BatchNorm)
def _batch(spec: BatchNorm, channels: int) -> nn.Module:
    return BatchNorm2d(channels)


@IMAGE_NORMS.register(LayerNorm)
def _layer_of_images(spec: LayerNorm, channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels, spec.eps)


@IMAGE_NORMS.register(GroupNorm)
def _group(spec: GroupNorm, channels: int) -> nn.Module:
    return nn.GroupNorm(spec.groups, channels)


@IMAGE_NORMS.register(RmsNorm)
def _rms_of_images(spec: RmsNorm, channels: int) -> nn.Module:
    return RootMeanSquareNorm(spec, channels, OF_IMAGES)


@IMAGE_NORMS.register(NoNorm)
def _none(spec: NoNorm, channels: int) -> nn.Module:
    return nn.Identity()


@TOKEN_NORMS.register(LayerNorm)
def _layer(spec: LayerNorm, width: int) -> nn.Module:
    return nn.LayerNorm(width, spec.eps)


@TOKEN_NORMS.register(RmsNorm)
def _rms(spec: RmsNorm, width: int) -> nn.Module:
    return RootMeanSquareNorm(spec, width, OF_TOKENS)


@TOKEN_NORMS.register(CrmsNorm)
def _crms(spec: CrmsNorm, width: int) -> nn.Module:
    return CompressedRmsNorm(spec, width)


@TOKEN_NORMS.register(PowerNorm)
def _power(spec: PowerNorm, width: int) -> nn.Module:
    return QuadraticNorm(spec, width)


@IMAGE_NORMS.register(UnifiedNorm)
def _unified_of_images(spec: UnifiedNorm, channels: int) -> nn.Module:
    return WindowNorm(spec, channels, axis=1)


@TOKEN_NORMS.register(UnifiedNorm)
def _unified(spec: UnifiedNorm, width: int) -> nn.Module:
    return WindowNorm(spec, width, axis=-1)


@IMAGE_NORMS.register(L1BatchNorm)
def _l1_batch(spec: L1BatchNorm, channels: int) -> nn.Module:
    return BatchDeviationNorm(spec, channels)


@IMAGE_NORMS.register(L1LayerNorm)
def _l1_of_images(spec: L1LayerNorm, channels: int) -> nn.Module:
    return MeanDeviationNorm(spec, channels, OF_IMAGES)


@TOKEN_NORMS.register(L1LayerNorm)
def _l1(spec: L1LayerNorm, width: int) -> nn.Module:
    return MeanDeviationNorm(spec, width, OF_TOKENS)


def normalise(norm: nn.Module, x: Tensor, real: Tensor | None = None) -> Tensor:
    """Floating tokens (N, S, D) by one of `TOKEN_NORMS`, to the same shape and dtype; `real` (N, S) bool: tokens that
    are no padding, by which the statistics of a batch are computed; none: all."""
    normalised: Tensor = norm(x, real) if isinstance(norm, QuadraticNorm | WindowNorm) else norm(x)
    return normalised


def add_and_normalise(norm: nn.Module, x: Tensor, added: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x + added, and its norm as by `normalise`: both (N, S, D), from floating tokens (N, S, D) of one dtype."""
    weights = fused_weights(norm)
    if weights is not None and x.is_cuda:
        return token_norms.add_and_normalise(x, added, weights)
    total = x + added
    return total, normalise(norm, total, real)


def fused_weights(norm: nn.Module) -> NormWeights | None:
    """The weights of a norm that a kernel computes; none: there is no kernel for it, or its output is recorded."""
    if norm._forward_hooks or norm._forward_pre_hooks:
        return None
    if isinstance(norm, nn.LayerNorm):
        return NormWeights("layer", norm.weight, norm.bias, norm.eps)
    if isinstance(norm, CompressedRmsNorm):
        return NormWeights("crms", norm.weight, None, norm.eps)
    if isinstance(norm, RootMeanSquareNorm) and norm.inside and norm.averaged == len(norm.weight):
        return NormWeights("rms", norm.weight, None, norm.eps)
    return None


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
    """x / sqrt(mean(x^2) + eps) * weight, or x / (sqrt(mean(x^2)) + eps) * weight (1910.07467): the mean is over the
    last `axes` axes, the first of which is the channels', or its leading part. Computed in at least float32; the result
    has the input's dtype."""

    def __init__(self, spec: RmsNorm, channels: int, axes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.axes = tuple(range(-axes, 0))
        self.eps, self.inside = spec.eps, spec.eps_mode == "inside"
        self.averaged = channels if spec.partial is None else max(1, int(spec.partial * channels))

    def forward(self, x: Tensor) -> Tensor:
        """Floating (..., C, H, W) of images or (..., C) of tokens to the same shape and dtype."""
        wide = at_least_float32(x)
        squares = wide.narrow(self.axes[0], 0, self.averaged).square().mean(self.axes, keepdim=True)
        if self.inside:
            scaled = wide * torch.rsqrt(squares + self.eps)
        else:  # the root has no gradient at 0
            scaled = wide / (squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt() + self.eps)
        return (scaled * self.weight.view(-1, *[1] * (len(self.axes) - 1))).to(x.dtype)


class CompressedRmsNorm(nn.Module):
    """x / sqrt((sum x_i^2 + (sum x_i)^2) / (D + 1) + eps) * weight (2305.14858), in at least float32; the result has
    the input's dtype."""

    def __init__(self, spec: CrmsNorm, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = spec.eps

    def forward(self, x: Tensor) -> Tensor:
        """Floating tokens (..., D) to the same shape and dtype."""
        wide = at_least_float32(x)
        squares = wide.square().sum(-1, keepdim=True) + wide.sum(-1, keepdim=True).square()
        return (wide * torch.rsqrt(squares / (x.shape[-1] + 1) + self.eps) * self.weight).to(x.dtype)
