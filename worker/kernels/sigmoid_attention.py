"""Sigmoid attention (2409.04431): a Triton kernel that keeps no weights on CUDA, plain PyTorch elsewhere.

N samples; Q queries attend to K keys in heads of size d: H of queries, and G of keys and values, each shared by H / G
neighbouring heads of queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worker.kernels.devices import HAS_TRITON
from worker.tensors import at_least_float32

LARGEST_HEAD = 128
"""Size of a head up to which blocks of the kernel fit into the memory of a processor of the GPU."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class AttentionMask:
    """Which keys the queries see; by default all. If there are more keys than queries, the last query is at the last
    key."""

    tokens: Tensor | None = None
    """(N, K) bool, false for padding."""
    causal: bool = False
    """Whether a query sees no later keys."""
    window: tuple[int, int] | None = None
    """Most keys before and after its own place that a query sees."""

    def bounds(self, keys: int) -> tuple[int, int]:
        """Most keys before and after its own place that a query sees, by window and causality."""
        before, after = self.window or (keys, keys)
        return before, min(after, 0) if self.causal else after

    def visible(self, queries: int, keys: int, device: torch.device) -> Tensor | None:
        """Whether a query sees a key: bool (N or 1, 1, Q or 1, K); none: all do."""
        seen = None if self.tokens is None else self.tokens[:, None, None, :]
        if not self.causal and self.window is None:
            return seen
        places = torch.arange(keys, device=device)
        later = places - (places[:queries] + (keys - queries)).unsqueeze(1)
        before, after = self.bounds(keys)
        near = (later >= -before) & (later <= after)
        return near[None, None] if seen is None else near & seen


NO_MASK = AttentionMask()


def sigmoid_attention(query: Tensor, key: Tensor, value: Tensor, bias: float, mask: AttentionMask = NO_MASK) -> Tensor:
    """sigmoid(q k^T / sqrt(d) + bias) v: (N, H, Q, d) in the dtype of `value`, from floating queries (N, H, Q, d) and
    keys and values (N, G, K, d) of one dtype. A query that sees no key gets zeros."""
    if _has_kernel(query):
        attended: Tensor = _SigmoidAttention.apply(query, key, value, bias, mask)  # type: ignore[no-untyped-call]
        return attended
    return plain(query, key, value, bias, mask)


def plain(query: Tensor, key: Tensor, value: Tensor, bias: float, mask: AttentionMask = NO_MASK) -> Tensor:
    """The reference of `sigmoid_attention`, with weights (N, H, Q, K) in at least float32."""
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    products = at_least_float32(query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5)
    seen = mask.visible(query.shape[-2], key.shape[-2], query.device)
    weights = torch.sigmoid(products + bias)
    if seen is not None:
        weights = weights * seen
    return weights.to(value.dtype) @ value


def _has_kernel(query: Tensor) -> bool:
    """Whether the kernel can be launched: not while a graph is made, nor where flash attention is switched off, as for
    second derivatives."""
    fits = query.is_cuda and query.dtype in DTYPES and query.shape[-1] <= LARGEST_HEAD
    flash: bool = torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]
    return fits and HAS_TRITON and flash and not torch.compiler.is_compiling()


class _SigmoidAttention(torch.autograd.Function):
    """The kernels; the backward pass computes the weights again from queries and keys."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: float, mask: AttentionMask) -> Tensor:
        from worker.kernels import sigmoid_kernels  # not every machine has Triton

        ctx.save_for_backward(query, key, value)
        ctx.bias, ctx.mask = bias, mask
        return sigmoid_kernels.forward(query, key, value, bias, mask.tokens, mask.bounds(key.shape[2]))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from worker.kernels import sigmoid_kernels

        query, key, value = ctx.saved_tensors
        given = (ctx.bias, ctx.mask.tokens, ctx.mask.bounds(key.shape[2]))
        return *sigmoid_kernels.backward(query, key, value, gradient, *given), None, None
