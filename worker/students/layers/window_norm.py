"""Unified normalisation (2208.01313), as in the authors' code.

    x2  = mean of x^2 over the batch, which takes the oldest place in a window of the last ones     per channel
    var = x2 in the warm-up and for an outlier, else the geometric mean of the window
    y   = weight * x / sqrt(var + eps) + bias;    in evaluation with the running mean of var

A batch is an outlier if in any channel the arithmetic mean of the window exceeds the geometric one by more than the
window's size times the variance of the roots of all its entries. With g the gradient at z = x / sqrt(var + eps), the
gradient at x is (g - m * z) / sqrt(var + eps), where m is the mean of g * z over the batch for an outlier, else a
running mean of the means in such a window. After the warm-up g and the gradient of the weight are multiplied by
sqrt(var + eps) / sqrt(running var + eps), between 1/5 and 5.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from app.recipe.students.layers import UnifiedNorm
from worker.students.layers.running import divide, mean_over_batch, scale_gradient
from worker.tensors import at_least_float32

LARGEST_RATIO = 5.0


class WindowedBatch(NamedTuple):
    """How a batch is normalised."""

    slot: Tensor
    """Its place in the windows, (1,) int64."""
    divisor: Tensor
    """(C,) floating."""
    ratio: Tensor
    """Factors (C,) of the gradient, floating."""
    skipped: Tensor
    """Whether it is an outlier, a bool scalar."""
    alone: Tensor
    """Whether it is normalised by its own statistics, a bool scalar."""


class WindowNorm(nn.Module):
    """Unified normalisation of the channels along `axis`, in at least float32; results have the input's dtype."""

    buffer_x2: Tensor
    buffer_gz: Tensor
    running_var: Tensor
    ema_gz: Tensor
    iterations: Tensor

    def __init__(self, spec: UnifiedNorm, channels: int, axis: int) -> None:
        super().__init__()
        self.spec, self.axis = spec, axis
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("buffer_x2", torch.zeros(spec.window, channels))
        self.register_buffer("buffer_gz", torch.zeros(spec.window, channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("ema_gz", torch.zeros(channels))
        self.register_buffer("iterations", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Floating images (N, C, H, W) or tokens (..., C) to the same shape and dtype; `real` (...) bool: tokens that
        are no padding, whose squares are averaged; none: all."""
        last = at_least_float32(x).movedim(self.axis, -1)
        normalised = self._divided(last, real) if self.training else last * self.factor + self.bias
        return normalised.movedim(-1, self.axis).to(x.dtype)

    @property
    def factor(self) -> Tensor:
        """Factors (C,) of the channels in evaluation."""
        return self.weight * torch.rsqrt(self.running_var + self.spec.eps)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # its backward pass writes buffers
    def _divided(self, x: Tensor, real: Tensor | None) -> Tensor:
        rows = x.flatten(0, -2)
        counted = None if real is None else real.flatten()
        with torch.no_grad():
            batch = self._next(mean_over_batch(rows.square(), counted))
        normalised = divide(rows, batch.divisor, partial(self._gradient, self.buffer_gz, self.ema_gz, batch))
        return (scale_gradient(normalised * self.weight, batch.ratio) + self.bias).view_as(x)

    def _next(self, x2: Tensor) -> WindowedBatch:
        """The batch with mean squares `x2` (C,), which is added to the window and to the running mean."""
        spec, step, window = self.spec, self.iterations.add_(1), self.buffer_x2
        slot = (step % spec.window).view(1)
        spread = window.sqrt().var()
        window.index_copy_(0, slot, x2.unsqueeze(0))
        geometric = window.log().mean(0).exp()
        outlier = (window.mean(0) - geometric > spec.window * spread).any()
        skipped = outlier & (step >= spec.warmup_steps) if spec.filter_outliers else torch.zeros_like(outlier)
        window.index_copy_(0, slot, torch.where(skipped, self.running_var, x2).unsqueeze(0))
        skipped = skipped | (spec.window == 1)
        alone = skipped | (step <= spec.window) | (step < spec.warmup_steps)
        var = torch.where(alone, x2, geometric)
        divisor = (var + spec.eps).sqrt()
        ratio = (divisor / (self.running_var + spec.eps).sqrt()).clamp(1 / LARGEST_RATIO, LARGEST_RATIO)
        plain = skipped | (step <= max(spec.clamp_after, spec.warmup_steps))
        self.running_var.copy_(spec.decay * self.running_var + (1 - spec.decay) * var)
        return WindowedBatch(slot, divisor, torch.where(plain, 1.0, ratio), skipped, alone)

    def _gradient(
        self, window: Tensor, running: Tensor, batch: WindowedBatch, towards: Tensor, quotient: Tensor
    ) -> Tensor:
        """The gradient at x (M, C), from that at the quotient; `window` (W, C) has the means of the last batches, and
        `running` (C,) their running mean."""
        mean = mean_over_batch(towards * quotient)
        window.index_copy_(0, batch.slot, torch.where(batch.skipped, running, mean).unsqueeze(0))
        averaged = torch.where(batch.alone, mean, window.mean(0))
        running.copy_(self.spec.decay * running + (1 - self.spec.decay) * averaged)
        return (towards - torch.where(batch.skipped, averaged, running) * quotient) / batch.divisor
