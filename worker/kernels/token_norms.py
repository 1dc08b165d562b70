"""Layer, root mean square and compressed root mean square norms of a sum of two residual branches, in one pass."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from worker.kernels.devices import HAS_TRITON
from worker.tensors import at_least_float32

NormKind = Literal["layer", "rms", "crms"]
KINDS: tuple[NormKind, ...] = ("layer", "rms", "crms")
"""In the order of the kernels' constants."""
LARGEST_WIDTH = 16_384
"""Numbers of a token that a program holds in registers."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class NormWeights(NamedTuple):
    """What a norm multiplies and adds, and what it adds to the mean of squares."""

    kind: NormKind
    weight: Tensor
    """(D,) floating."""
    offset: Tensor | None
    """(D,) floating, of a layer norm alone."""
    eps: float


def add_and_normalise(x: Tensor, added: Tensor, norm: NormWeights) -> tuple[Tensor, Tensor]:
    """x + added, and its norm: both (..., D), floating, of the dtype of that sum, from floating `x` and `added`
    (..., D)."""
    if _has_kernel(x, added):
        total, normal = _AddAndNormalise.apply(x, added, norm.weight, norm.offset, norm.eps, norm.kind)  # type: ignore[no-untyped-call]
        return total, normal
    return plain(x, added, norm)


def plain(x: Tensor, added: Tensor, norm: NormWeights) -> tuple[Tensor, Tensor]:
    """The reference of `add_and_normalise`, see there, with statistics in at least float32; `x` and `added` are
    (..., D), floating."""
    total = x + added
    wide, width = at_least_float32(total), total.shape[-1]
    if norm.kind == "layer":
        wide = wide - wide.mean(-1, keepdim=True)
    squares = wide.square().sum(-1, keepdim=True)
    if norm.kind == "crms":
        squares, width = squares + wide.sum(-1, keepdim=True).square(), width + 1
    normal = wide * torch.rsqrt(squares / width + norm.eps) * norm.weight
    return total, (normal if norm.offset is None else normal + norm.offset).to(total.dtype)


def _has_kernel(x: Tensor, added: Tensor) -> bool:
    """Whether the kernels can be launched: not while a graph is made, nor where flash attention is switched off, as for
    second derivatives."""
    known = x.dtype in DTYPES and torch.promote_types(x.dtype, added.dtype) == x.dtype
    fits = x.is_cuda and known and x.shape[-1] <= LARGEST_WIDTH
    first: bool = torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]
    return fits and HAS_TRITON and first and not torch.compiler.is_compiling()


class _AddAndNormalise(torch.autograd.Function):
    """The kernels, on rows."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, added: Tensor, weight: Tensor, offset: Tensor | None, eps: float, kind: NormKind
    ) -> tuple[Tensor, Tensor]:
        from worker.kernels import norm_kernels  # not every machine has Triton

        first, second = (each.reshape(-1, x.shape[-1]).contiguous() for each in (x, added))
        total, out, means, scales = norm_kernels.forward(first, second, weight, offset, eps, KINDS.index(kind))
        ctx.save_for_backward(total, weight, means, scales)
        ctx.kind, ctx.added, ctx.offset = KINDS.index(kind), added.dtype, None if offset is None else offset.dtype
        return total.view_as(x), out.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_total: Tensor, given: Tensor) -> tuple[Tensor | None, ...]:
        from worker.kernels import norm_kernels

        total, weight, means, scales = ctx.saved_tensors
        above, beside = (each.reshape(total.shape).contiguous() for each in (given, of_total))
        grad, of_weight, of_offset = norm_kernels.backward(total, weight, means, scales, above, beside, ctx.kind)
        branch = grad.view_as(given)
        return (
            branch,
            branch.to(ctx.added),
            of_weight.to(weight.dtype),
            ctx.offset and of_offset.to(ctx.offset),
            None,
            None,
        )
