"""Removes the radial part of updates on scale-invariant weights (2006.08217, algorithms 1 and 2)."""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.linalg import vector_norm

from worker.optimizers.base import by_shape, stacked

BLOCK = 1 << 16
"""Elements that a CPU multiplies at a time: the allocator has memory for these, more would be a system call."""


class _View(NamedTuple):
    """Weights, gradients and updates of k tensors, each cut into the same number of rows; all (k, rows), float32 or
    float64."""

    gradient_on_weight: Tensor
    update_on_weight: Tensor
    weight_norm: Tensor
    gradient_norm: Tensor

    @classmethod
    def of(cls, weight: Tensor, gradient: Tensor, update: Tensor) -> Self:
        """One row for each output channel; the tensors are (k, rows, …), float32 or float64."""
        inside = tuple(range(2, weight.ndim))
        return cls(
            _dot(gradient, weight, inside),
            _dot(update, weight, inside),
            vector_norm(weight, dim=inside),
            vector_norm(gradient, dim=inside),
        )

    def whole(self) -> Self:
        """Each tensor as a single row."""
        return self._replace(
            gradient_on_weight=self.gradient_on_weight.sum(1, keepdim=True),
            update_on_weight=self.update_on_weight.sum(1, keepdim=True),
            weight_norm=vector_norm(self.weight_norm, dim=1, keepdim=True),
            gradient_norm=vector_norm(self.gradient_norm, dim=1, keepdim=True),
        )

    def fires(self, threshold: float, eps: float) -> Tensor:
        """Whether the gradients of all rows are nearly orthogonal to their weights; bool (k, 1)."""
        cosine = self.gradient_on_weight.abs() / (self.weight_norm.clamp(min=eps) * self.gradient_norm.clamp(min=eps))
        return (cosine < threshold).all(1, keepdim=True)

    def radial(self, eps: float) -> Tensor:
        """The radial part of the updates (k, rows), as a multiple of the weights."""
        return self.update_on_weight / (self.weight_norm + eps).square()


def project(
    weights: list[Tensor], gradients: list[Tensor], updates: list[Tensor], delta: float, wd_ratio: float, eps: float
) -> list[Tensor]:
    """Project in place the updates of weights that appear scale-invariant; returns the factor of the weight decay for
    each, a scalar. Tensors are float32 or float64, of the weights' shapes.

    The test for scale invariance is a gradient orthogonal to the weights: per output channel first, then over the whole
    tensor; tensors of fewer than two dimensions are not projected. Tensors of one shape are processed together. The
    result of the test stays on the device, because reading it would stall a GPU.
    """
    ratios = [weights[0].new_ones(())] * len(weights)
    for members in by_shape(weights):
        if weights[members[0]].ndim > 1 and weights[members[0]].numel() > 0:
            weight, gradient, update = (stacked(tensors, members) for tensors in (weights, gradients, updates))
            radial, fires = _radial(weight, _View.of(weight, gradient, update), delta, eps)
            update.addcmul_(weight, radial.view(*radial.shape, *[1] * (weight.ndim - 2)), value=-1.0)
            for index, projected, fired in zip(members, update, fires, strict=True):
                updates[index] = projected
                ratios[index] = 1.0 - (1.0 - wd_ratio) * fired
    return ratios


def _radial(weight: Tensor, channels: _View, delta: float, eps: float) -> tuple[Tensor, Tensor]:
    """Multiple of its weights to subtract from each row's update (k, rows), and whether there is any, as 0 or 1 (k)."""
    whole = channels.whole()
    by_channel = channels.fires(delta / math.sqrt(weight[0, 0].numel()), eps)
    by_layer = whole.fires(delta / math.sqrt(weight[0].numel()), eps)
    radial = torch.where(by_channel, channels.radial(eps), torch.where(by_layer, whole.radial(eps), 0.0))
    return radial, (by_channel | by_layer).flatten().to(weight.dtype)


def _dot(left: Tensor, right: Tensor, inside: tuple[int, ...]) -> Tensor:
    """Dot products (k, rows) of the rows (k, rows, …), summed over the axes `inside`."""
    rows = max(1, BLOCK * left.shape[1] // left.numel()) if left.device.type == "cpu" else left.shape[1]
    parts = zip(torch.split(left, rows, 1), torch.split(right, rows, 1), strict=True)
    return torch.cat([(one * other).sum(inside) for one, other in parts], 1)
