"""PowerNorm (2003.07845).

    xs  = x / sqrt(mean of x^2 over a group of channels + eps)        per token
    var = mean of xs^2 over the batch                                 per channel
    y   = weight * xs / sqrt(v + eps) + bias,     v = var in the warm-up, then the running mean phi; in evaluation phi

The gradient at xs divides by sqrt(var + eps) after the warm-up too, as in the authors' code: with g the gradient at
z = xs / sqrt(v + eps), it is ga / sqrt(var + eps), where ga = g - (1 - backward_decay) * ema_gz * z, and the mean of
ga * z over the batch is added to ema_gz.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from app.recipe.students.layers import PowerNorm
from worker.students.layers.running import divide, mean_over_batch
from worker.tensors import at_least_float32


class QuadraticNorm(nn.Module):
    """PowerNorm of tokens, in at least float32; results have the input's dtype."""

    running_phi: Tensor
    ema_gz: Tensor
    iterations: Tensor

    def __init__(self, spec: PowerNorm, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_phi", torch.ones(width))
        self.register_buffer("ema_gz", torch.zeros(width))
        self.register_buffer("iterations", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Floating tokens (..., D) to the same shape and dtype; `real` (...) bool: tokens that are no padding, whose
        squares are averaged; none: all."""
        wide = self._grouped(at_least_float32(x))
        scaled = self._divided(wide, real) * self.weight if self.training else wide * self.factor
        return (scaled + self.bias).to(x.dtype)

    @property
    def factor(self) -> Tensor:
        """Factors (D,) of the channels in evaluation, after the division by the root mean square of the token."""
        return self.weight * torch.rsqrt(self.running_phi + self.spec.eps)

    def _grouped(self, x: Tensor) -> Tensor:
        """Each group of channels divided by its root mean square."""
        groups = x.view(*x.shape[:-1], self.spec.groups, -1)
        return (groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + self.spec.eps)).view_as(x)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # its backward pass writes a buffer
    def _divided(self, scaled: Tensor, real: Tensor | None) -> Tensor:
        rows = scaled.flatten(0, -2)
        counted = None if real is None else real.flatten()
        with torch.no_grad():
            var = mean_over_batch(rows.square(), counted)
            divisor = self._next(var)
        gradient = partial(self._gradient, self.ema_gz, (var + self.spec.eps).sqrt())
        return divide(rows, divisor, gradient).view_as(scaled)

    def _next(self, var: Tensor) -> Tensor:
        """Divisors (C,) of a batch with mean squares `var` (C,), which is added to the running mean."""
        spec, step = self.spec, self.iterations.add_(1)
        divisor = (torch.where(step <= spec.warmup_steps, var, self.running_phi) + spec.eps).sqrt()
        warmed = self.running_phi + (var - self.running_phi) / step
        phi = torch.where(step < spec.warmup_steps, warmed, self.running_phi)
        self.running_phi.copy_(spec.forward_decay * phi + (1 - spec.forward_decay) * var)
        return divisor

    def _gradient(self, accumulated: Tensor, deviation: Tensor, towards: Tensor, quotient: Tensor) -> Tensor:
        approximate = towards - (1 - self.spec.backward_decay) * accumulated * quotient
        accumulated += mean_over_batch(approximate * quotient)
        return approximate / deviation
