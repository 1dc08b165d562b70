"""Removes the radial part of an update on scale-invariant weights (2006.08217, algorithms 1 and 2)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class _View(NamedTuple):
    fires: Tensor
    """Whether every row's gradient is nearly orthogonal to its weights; bool scalar."""
    update: Tensor
    """The update (rows, length) without its radial part."""


def project(
    weight: Tensor, gradient: Tensor, update: Tensor, delta: float, wd_ratio: float, eps: float
) -> tuple[Tensor, Tensor | float]:
    """Project `update` if `weight` looks scale-invariant: (update, factor of the weight decay).

    A gradient orthogonal to the weights is the mark of scale invariance. It is looked for per output channel first,
    then over the whole tensor; tensors of fewer than two dimensions are left alone. The choice stays on the device:
    both views are computed, because reading the outcome would stall a GPU once per tensor.
    """
    if weight.ndim <= 1 or weight.numel() == 0:
        return update, 1.0
    channel = _view(weight, gradient, update, len(weight), delta, eps)
    layer = _view(weight, gradient, update, 1, delta, eps)
    projected = torch.where(
        channel.fires, channel.update.view_as(update), torch.where(layer.fires, layer.update.view_as(update), update)
    )
    fires = (channel.fires | layer.fires).to(weight.dtype)
    return projected, 1.0 - (1.0 - wd_ratio) * fires


def _view(weight: Tensor, gradient: Tensor, update: Tensor, rows: int, delta: float, eps: float) -> _View:
    w, g, u = (tensor.reshape(rows, -1) for tensor in (weight, gradient, update))
    norm = torch.linalg.vector_norm(w, dim=1, keepdim=True)
    g_norm = torch.linalg.vector_norm(g, dim=1, keepdim=True)
    cosine = (g * w).sum(1, keepdim=True).abs() / (norm.clamp(min=eps) * g_norm.clamp(min=eps))
    direction = w / (norm + eps)
    radial = direction * (direction * u).sum(1, keepdim=True)
    return _View(cosine.max() < delta / math.sqrt(w.shape[1]), u - radial)
