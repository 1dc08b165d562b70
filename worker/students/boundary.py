"""Boundary supporting samples (arXiv 1805.05532): samples moved just across a network's decision boundary.

n samples, C classes; images (n, channels, height, width) as networks are given them, in normalised units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worker.students.model import Model

ComputeLogits = Callable[[Tensor], Tensor]
"""Logits (n, C) of inputs; the logits of one do not depend on the others."""
OVERSHOOT = 1e-4
"""Added to the difference of two logits, so that a step leads beyond where they are equal."""


class SearchSettings(NamedTuple):
    """How far and in what bounds samples are moved."""

    steps: int
    """Largest number of steps."""
    alpha: float
    """Length of a step per difference of the two logits."""
    low: Tensor
    high: Tensor
    """Bounds of the inputs, which broadcast to them."""


def search_settings(model: Model, steps: int, alpha: float, clip: Sequence[float] | None) -> SearchSettings:
    """For what the network of `model` is given, between the two values of `clip`; none: within the range of pixels."""
    numbers = next(model.parameters())
    if clip is not None:
        return SearchSettings(steps, alpha, numbers.new_tensor(clip[0]), numbers.new_tensor(clip[1]))
    black = numbers.new_zeros(1, 1, 1, 1)
    return SearchSettings(steps, alpha, model.preprocess(black), model.preprocess(black + model.highest_pixel))


class BoundarySearch(NamedTuple):
    """What a search has found."""

    inputs: Tensor
    """The moved samples, without gradient."""
    stuck: Tensor
    """(n,) bool: samples that were left where they are because a gradient was 0 before they left their class."""
    passes: int
    """Forward and backward passes of the network on single samples."""


def search_boundary(
    network: ComputeLogits, inputs: Tensor, base: Tensor, target: Tensor, settings: SearchSettings
) -> BoundarySearch:
    """Move `inputs`, which `network` (in evaluation mode) assigns to the classes `base` (n,) int64, towards the classes
    `target` (n,) until they leave their base class, for at most so many steps.

    A step of a sample x is alpha (D + 1e-4) g / |g|, with D = f_base(x) - f_target(x) and g the gradient of -D; inputs
    are clipped after each. Computed in the network's own arithmetic, without autocast.
    """
    found, passes = inputs.detach().clone(), 0
    stuck, active = torch.zeros_like(base, dtype=torch.bool), torch.arange(len(inputs), device=inputs.device)
    for _ in range(settings.steps):
        there, classes = found[active], base[active]
        logits, gap, gradient = _gradient(network, there, classes, target[active])
        passes += len(active)
        norms = gradient.flatten(1).norm(dim=1)
        inside = logits.argmax(-1) == classes
        stuck[active[inside & (norms == 0)]] = True
        moving = (inside & (norms != 0)).nonzero().squeeze(1)
        if not len(moving):
            break
        lengths = (settings.alpha * (gap + OVERSHOOT) / norms)[moving].view(-1, 1, 1, 1)
        active = active[moving]
        found[active] = (there[moving] + lengths * gradient[moving]).clamp(settings.low, settings.high)
    return BoundarySearch(found, stuck, passes)


def _gradient(network: ComputeLogits, inputs: Tensor, base: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (n, C), D (n,), and the gradient of -D at the inputs."""
    with torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False):
        moved = inputs.detach().requires_grad_()
        logits = network(moved)
        gap = (logits.gather(1, base.unsqueeze(1)) - logits.gather(1, target.unsqueeze(1))).squeeze(1)
        (gradient,) = torch.autograd.grad(-gap.sum(), moved)
    return logits.detach(), gap.detach(), gradient
