"""Attacks on classifiers of images, bounded in the L-infinity norm: FGSM (1412.6572) and PGD (1706.06083).

Images (B, C, H, W) are raw, of any numeric dtype, their pixels from 0 to `highest`; attacked ones are of the same range
and of float32, or float64 where the images are. The caller sets the model to evaluation mode, in which an attack on an
image does not depend on the other images of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.attacks import AttackSpec
from worker.tensors import at_least_float32

NORMAL_START = 0.001
"""Standard deviation of the noise of a normal start, as a share of the pixels' range."""
Logits = Callable[[Tensor], Tensor]
"""From raw images to logits (B, C)."""
Raised = Callable[[Tensor], Tensor]
"""From logits (B, C), float32 or float64, to what an attack raises: a scalar, the sum of terms of single images."""


class Ball(NamedTuple):
    """Images within the bound of given ones and within the pixels' range: least and largest pixels."""

    least: Tensor
    largest: Tensor

    def project(self, images: Tensor) -> Tensor:
        """The nearest images of the ball."""
        return images.clamp(self.least, self.largest)


def start_noise(
    attack: AttackSpec, shape: torch.Size, highest: float, seed: int, device: torch.device
) -> Tensor | None:
    """Differences (float32, of `shape`) between the starting points of attacks and the images, drawn by `seed`; none:
    attacks start at the images."""
    random = torch.Generator(device).manual_seed(seed)
    match attack.random_start:
        case "normal":
            return NORMAL_START * highest * torch.randn(shape, generator=random, device=device)
        case "uniform":
            return attack.bound * highest * (2 * torch.rand(shape, generator=random, device=device) - 1)
        case "none":
            return None


def pgd(
    logits: Logits, images: Tensor, raised: Raised, attack: AttackSpec, highest: float, noise: Tensor | None = None
) -> Tensor:
    """Images attacked by steps along the sign of the gradient of what is `raised`, each followed by a projection into
    the bound and the pixels' range, starting at `images` plus `noise` (see `start_noise`)."""
    clean = at_least_float32(images)
    ball, attacked = ball_around(clean, attack.bound, highest), clean
    if noise is not None:
        attacked = clean + noise
        if attack.random_start == "uniform":  # a normal start is not clipped, as in the authors' code
            attacked = ball.project(attacked)
    for _ in range(attack.steps):
        direction = input_gradient(logits, attacked, raised).sign()
        attacked = ball.project(attacked + attack.step_size * highest * direction)
    return attacked


def fgsm(logits: Logits, images: Tensor, raised: Raised, bound: float, highest: float) -> Tensor:
    """Images moved once, by the whole bound, along the sign of the gradient of what is `raised`."""
    clean = at_least_float32(images)
    direction = input_gradient(logits, clean, raised).sign()
    return ball_around(clean, bound, highest).project(clean + bound * highest * direction)


def ball_around(images: Tensor, bound: float, highest: float) -> Ball:
    """See `Ball`; `bound` is a share of the pixels' range."""
    reach = bound * highest
    return Ball((images - reach).clamp(min=0.0), (images + reach).clamp(max=highest))


def input_gradient(logits: Logits, images: Tensor, raised: Raised) -> Tensor:
    """Gradient of what is `raised` with respect to the pixels of floating images; parameters receive none."""
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        found = raised(at_least_float32(logits(leaf)))
    (gradient,) = torch.autograd.grad(found, leaf)
    return gradient


def cross_entropy_with(targets: Tensor) -> Raised:
    """The cross-entropy with classes (B,) int64 or probabilities (B, C); 0 for ignored rows."""

    def raised(logits: Tensor) -> Tensor:
        wanted = targets.to(logits.dtype) if targets.is_floating_point() else targets
        return F.cross_entropy(logits, wanted, reduction="sum")

    return raised
