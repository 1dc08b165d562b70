"""Parts of norms whose divisors and gradients have running statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

Gradient = Callable[[Tensor, Tensor], Tensor]
"""The gradient at a dividend, from that at the quotient and the quotient, all of the same shape and dtype."""


def mean_over_batch(values: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean (C,) of values (M, C) over the rows of this process and of all others that train with it, or those that are
    `counted` (M,) bool."""
    if counted is None:
        total = torch.cat([values.sum(0), values.new_tensor([len(values)])])
    else:
        total = torch.cat([(values * counted.unsqueeze(1)).sum(0), counted.sum().to(values).view(1)])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return total[:-1] / total[-1].clamp(min=1)


def divide(dividend: Tensor, divisor: Tensor, gradient: Gradient) -> Tensor:
    """dividend / divisor (M, C), by divisors (C,), all floating; the gradient at the dividend is what `gradient`
    returns, and can't be differentiated again."""
    quotient: Tensor = _Quotient.apply(dividend, divisor, gradient)  # type: ignore[no-untyped-call]
    return quotient


class _Quotient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dividend: Tensor, divisor: Tensor, gradient: Gradient) -> Tensor:
        quotient = dividend / divisor
        ctx.save_for_backward(quotient)
        ctx.gradient = gradient
        return quotient

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, towards: Tensor) -> tuple[Tensor, None, None]:
        (quotient,) = ctx.saved_tensors
        return ctx.gradient(towards, quotient), None, None


def scale_gradient(x: Tensor, factor: Tensor) -> Tensor:
    """`x` (..., C), whose gradient is multiplied by `factor` (C,)."""
    scaled: Tensor = _ScaledGradient.apply(x, factor)  # type: ignore[no-untyped-call]
    return scaled


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, towards: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return towards * factor, None
