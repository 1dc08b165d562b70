"""Base of self-attention: the linear maps, and the registry of kinds.

N samples of S tokens of width D = H d, with H heads of size d; Q queries attend to K keys, which are S of both in
self-attention.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from app.recipe.students.layers import AttentionShape, AttentionSpec
from worker.kernels.sigmoid_attention import NO_MASK, AttentionMask
from worker.students.layers.registry import LayerRegistry

ATTENTIONS = LayerRegistry[[AttentionShape]]()
"""Built from the sizes of the layer and of its input."""


class SelfAttention(nn.Module, ABC):
    """Multi-head self-attention over tokens (N, S, D); subclasses define the attention of the heads."""

    def __init__(self, spec: AttentionSpec, shape: AttentionShape) -> None:
        super().__init__()
        self.heads, self.projections = shape.heads, spec.projections
        self.add_module(spec.projections, nn.Linear(shape.width, len(spec.projections) * shape.width))
        self.out = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor, mask: AttentionMask = NO_MASK) -> Tensor:
        """Floating (N, S, D) to the same shape and dtype. `mask` has only what the kind can apply (the contract
        checks it)."""
        mapped = self.get_submodule(self.projections)(x).chunk(len(self.projections), dim=-1)
        mixed: Tensor = self.out(self.mix(mapped, mask).to(mapped[0].dtype))
        return mixed

    def mix(self, mapped: tuple[Tensor, ...], mask: AttentionMask) -> Tensor:
        """Attended values (N, S, D), floating, from the projections (N, S, D) each."""
        attended = self.attend(*(self._split(each) for each in mapped), mask=mask)
        return attended.transpose(1, 2).flatten(2)

    @abstractmethod
    def attend(self, *heads: Tensor, mask: AttentionMask = NO_MASK) -> Tensor:
        """Attended values (N, H, S, d), floating, from the projections (N, H, S, d) each."""

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, x.shape[-1] // self.heads).transpose(1, 2)


def in_full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Products of matrices keep the precision of their inputs, also under autocast."""
    enabled = torch.is_autocast_enabled(device.type)  # else graphs would have the context too
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()


def on_grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The last tokens (N, ..., S, C), which are patches row by row, as maps (N, ..., C, rows, columns)."""
    patches = tokens[..., tokens.shape[-2] - grid[0] * grid[1] :, :].transpose(-2, -1)
    return patches.reshape(*patches.shape[:-1], *grid)


def off_grid(maps: Tensor, tokens: int) -> Tensor:
    """Inverse of `on_grid`: (N, ..., tokens, C), with zeros for the tokens before the patches."""
    patches = maps.flatten(-2).transpose(-2, -1)
    return nn.functional.pad(patches, (0, 0, tokens - patches.shape[-2], 0))
