"""Directions in the space of weights, scaled to the weights (1712.09913)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

LEAST = 1e-10
"""Added to the length of a filter's direction."""
Scaling = Literal["filter", "layer", "model", "weight"]


def scaled(directions: Sequence[Tensor], weights: Sequence[Tensor], scaling: Scaling) -> list[Tensor]:
    """The floating `directions`, each of the shape of its tensor of `weights`: with the length of every filter (a
    slice along the first axis; a vector as a whole), of every tensor, or of all weights together, or multiplied by the
    weights."""
    if scaling == "model":
        ratio = _length(weights) / _length(directions)
        return [ratio * direction for direction in directions]
    return [_SCALED[scaling](direction, weight) for direction, weight in zip(directions, weights, strict=True)]


def _length(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum().sqrt()


def _by_filter(direction: Tensor, weight: Tensor) -> Tensor:
    if direction.ndim < 2:
        return _by_layer(direction, weight)
    wanted, found = (each.flatten(1).square().sum(1).sqrt() for each in (weight, direction))
    return direction * (wanted / (found + LEAST)).view(-1, *[1] * (direction.ndim - 1))


def _by_layer(direction: Tensor, weight: Tensor) -> Tensor:
    length = direction.square().sum().sqrt()
    return direction * (weight.square().sum().sqrt() / length) if float(length) else direction


def _by_weight(direction: Tensor, weight: Tensor) -> Tensor:
    return direction * weight


_SCALED = {"filter": _by_filter, "layer": _by_layer, "weight": _by_weight}


def surface(loss: Callable[[Tensor], float], at: Tensor, axes: Sequence[Tensor], points: Tensor) -> Tensor:
    """Losses (G, G) float64 at `at` + a first + b second axis, all (P,) floating, for a and b in `points` (G,)."""
    first, second = axes
    rows = [[loss(at + a * first + b * second) for b in points.tolist()] for a in points.tolist()]
    return torch.tensor(rows, dtype=torch.float64)
