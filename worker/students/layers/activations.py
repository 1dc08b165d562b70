"""Activations, of tensors of any shape and floating dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from app.recipe.students.layers import Gelu, LeakyRelu, OptimalHermite, Relu, Selu, Silu
from worker.students.layers.registry import LayerRegistry

ACTIVATIONS = LayerRegistry[[]]()
SELU_SCALE, SELU_ALPHA = 1.0507009873554804934, 1.6732632423543772848
SATURATED = -SELU_SCALE * SELU_ALPHA
"""Limit of `selu` for negative values."""
LARGEST_INPUT = 5.0
"""Of the cubic, which explodes beyond."""


@ACTIVATIONS.register(Relu)
def _relu(spec: Relu) -> nn.Module:
    return nn.ReLU()


@ACTIVATIONS.register(LeakyRelu)
def _leaky_relu(spec: LeakyRelu) -> nn.Module:
    return nn.LeakyReLU(spec.slope)


@ACTIVATIONS.register(Gelu)
def _gelu(spec: Gelu) -> nn.Module:
    return nn.GELU()


@ACTIVATIONS.register(Silu)
def _silu(spec: Silu) -> nn.Module:
    return nn.SiLU()


@ACTIVATIONS.register(Selu)
class SeluDropout(nn.Module):
    """`selu` (1706.02515), followed by alpha-dropout in training."""

    def __init__(self, spec: Selu) -> None:
        super().__init__()
        self.rate = spec.alpha_dropout

    def forward(self, x: Tensor) -> Tensor:
        """Floating values of any shape to the same shape and dtype."""
        activated = selu(x)
        if not (self.training and self.rate):
            return activated
        return alpha_dropout(activated, torch.rand_like(activated) >= self.rate, self.rate)


def selu(x: Tensor) -> Tensor:
    """l x, or l a (exp x - 1) where x is negative; floating, of any shape. The gradient at 0 is l."""
    return _elementwise(x, _selu, _selu_slope)


def _selu(x: Tensor) -> Tensor:
    return torch.where(x >= 0, x, SELU_ALPHA * torch.expm1(x.clamp(max=0.0))) * SELU_SCALE


def _selu_slope(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, SELU_ALPHA * torch.exp(x.clamp(max=0.0))) * SELU_SCALE


def alpha_dropout(x: Tensor, kept: Tensor, rate: float) -> Tensor:
    """`x` where `kept` (bool, of its shape), else the limit of `selu`; then the affine map that restores mean 0 and
    variance 1 if a value is dropped with probability `rate` (1706.02515, section 2)."""
    share = 1 - rate
    factor: float = (share * (rate * SATURATED**2 + 1)) ** -0.5
    return torch.where(kept, x, SATURATED) * factor - factor * rate * SATURATED


@ACTIVATIONS.register(OptimalHermite)
class HermiteCubic(nn.Module):
    """c (x^3 - 3 x) / sqrt(6) + s (x^2 - 1) / sqrt(2) + c x of x between -5 and 5 (2204.14126)."""

    def __init__(self, spec: OptimalHermite) -> None:
        super().__init__()
        self.odd: float = 2.0 ** (-spec.dimension / 4)
        self.even = math.sqrt(1 - 2.0 ** (1 - spec.dimension / 2))

    def forward(self, x: Tensor) -> Tensor:
        """Floating values of any shape to the same shape and dtype."""
        return _elementwise(x, self._value, self._slope)

    def _value(self, x: Tensor) -> Tensor:
        x = x.clamp(-LARGEST_INPUT, LARGEST_INPUT)
        third, second = x * (x.square() - 3) / math.sqrt(6), (x.square() - 1) / math.sqrt(2)
        return self.odd * (third + x) + self.even * second

    def _slope(self, x: Tensor) -> Tensor:
        slope = self.odd * ((x.square() - 1) * math.sqrt(1.5) + 1) + self.even * math.sqrt(2) * x
        return torch.where(x.abs() <= LARGEST_INPUT, slope, 0.0)


Function = Callable[[Tensor], Tensor]


def _elementwise(x: Tensor, value: Function, slope: Function) -> Tensor:
    """value(x), whose gradient is that times slope(x), so that only `x` is kept for the backward pass."""
    found: Tensor = _Elementwise.apply(x, value, slope)  # type: ignore[no-untyped-call]
    return found


class _Elementwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Function, slope: Function) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope
        return value(x)

    @staticmethod
    def backward(ctx: Any, towards: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return towards * ctx.slope(x), None, None
