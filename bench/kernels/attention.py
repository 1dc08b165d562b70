"""Sigmoid attention from queries, keys and values to gradients, compared with its plain form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bench.kernels.contest import Contender, Contest
from bench.kernels.heads import OURS, PLAIN
from worker.kernels.sigmoid_attention import NO_MASK, AttentionMask, plain, sigmoid_attention


class Attended(NamedTuple):
    """Sizes of queries, keys and values."""

    samples: int
    heads: int
    tokens: int
    size: int
    causal: bool = False

    def __str__(self) -> str:
        sizes = f"{self.samples} samples × {self.heads} heads × {self.tokens:,} tokens × {self.size}"
        return f"{sizes}, causal" if self.causal else sizes


class Case:
    """Inputs of one size."""

    def __init__(self, size: Attended, device: torch.device, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        shape = (3, size.samples, size.heads, size.tokens, size.size)
        self.leaves = [each.requires_grad_() for each in torch.randn(shape, device=device, dtype=dtype).unbind()]
        self.mask = AttentionMask(causal=True) if size.causal else NO_MASK
        self.bias = -float(torch.tensor(size.tokens).log())

    def reset(self) -> None:
        """Clear the gradients."""
        for leaf in self.leaves:
            leaf.grad = None

    def ours(self) -> Tensor:
        """Mean square of the outputs, by the kernels where there are some."""
        return sigmoid_attention(*self.leaves, self.bias, self.mask).float().square().mean()

    def plain(self) -> Tensor:
        """The same with all weights at once."""
        return plain(*self.leaves, self.bias, self.mask).float().square().mean()


def contest(size: Attended, device: torch.device, dtype: torch.dtype) -> Contest:
    """Both forms."""
    case = Case(size, device, dtype)
    stored = sum(leaf.numel() * leaf.element_size() for leaf in case.leaves)
    pairs = size.samples * size.heads * size.tokens**2
    return Contest(
        f"sigmoid attention, {size}",
        device,
        dtype,
        {OURS: lambda: Contender(case.ours), PLAIN: lambda: Contender(case.plain)},
        case.reset,
        case.plain,
        stored,
        least_bytes=2 * stored,
        flops=14 * pairs * size.size // (2 if size.causal else 1),
        leaves=case.leaves,
    )
