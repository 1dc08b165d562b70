"""Norm-aware linear attention (NaLaFormer, 2506.21137), as in its authors' code.

N samples of S tokens of width D, H heads of size d.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.students.layers import AttentionShape, NalaAttention
from app.recipe.students.layers.attentions import LOCAL_SIDE
from worker.kernels.sigmoid_attention import NO_MASK, AttentionMask
from worker.students.layers.attentions.base import (
    ATTENTIONS,
    SelfAttention,
    in_full_precision,
    off_grid,
    on_grid,
)
from worker.tensors import at_least_float32

BASE = 10_000.0
"""Ratio of the fastest rotation to the slowest."""
LEAST_SUM = LEAST_NORM = 1e-6
"""Added to the sum of the weights; least norm of a query, which divides it."""


def grid_angles(grid: tuple[int, int], size: int, like: Tensor) -> Tensor:
    """Angles (rows * columns, size / 2) of pairs of channels, in the dtype and on the device of `like`: of the first
    half by the row, of the others by the column."""
    rows, columns = (torch.arange(side, dtype=like.dtype, device=like.device) for side in grid)
    speeds = BASE ** -torch.linspace(0, 1, size // 4, dtype=like.dtype, device=like.device)
    by_row = (rows[:, None] * speeds)[:, None].expand(-1, grid[1], -1)
    by_column = (columns[:, None] * speeds)[None].expand(grid[0], -1, -1)
    return torch.cat([by_row, by_column], dim=-1).flatten(0, 1)


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Neighbouring pairs of channels of `x` (..., S, d), floating, rotated by `angles` (S, d / 2)."""
    even, odd, cosines, sines = x[..., ::2], x[..., 1::2], angles.cos(), angles.sin()
    return torch.stack([even * cosines - odd * sines, odd * cosines + even * sines], dim=-1).flatten(-2)


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    return F.relu(x), F.relu(-x)


@ATTENTIONS.register(NalaAttention)
class NalaSelfAttention(SelfAttention):
    """norm(core + local(v)) * silu(g), where core is linear attention of powers of queries and of cubed keys."""

    def __init__(self, spec: NalaAttention, shape: AttentionShape) -> None:
        super().__init__(spec, shape)
        assert shape.grid is not None  # by the contract
        self.grid, self.power, self.least_power = shape.grid, spec.power, spec.half
        self.local = nn.Conv2d(shape.width, shape.width, LOCAL_SIDE, padding=LOCAL_SIDE // 2, groups=shape.width)
        self.norm = nn.LayerNorm(shape.width)

    def mix(self, mapped: tuple[Tensor, ...], mask: AttentionMask) -> Tensor:
        """See `SelfAttention.mix`; the attention is computed in at least float32."""
        query, key, value, gate = (at_least_float32(each) for each in mapped)
        with in_full_precision(value.device):
            core = super().mix((query, key, value), mask)
            convolved = off_grid(self.local(on_grid(value, self.grid)), value.shape[1])
            gated: Tensor = self.norm(core + convolved) * F.silu(gate)
        return gated

    def attend(self, *heads: Tensor, mask: AttentionMask = NO_MASK) -> Tensor:
        """See `SelfAttention.attend`; of queries, keys and values."""
        query, key, value = heads
        norms = query.norm(dim=-1, keepdim=True)
        exponents = self.power * (self.least_power + norms.tanh())
        queries = [(part / norms.clamp(min=LEAST_NORM)) ** exponents for part in _parts(query)]
        keys = list(_parts(key**3))
        total = torch.cat(queries, -1) @ torch.cat(keys, -1).mean(-2).unsqueeze(-1)
        angles = grid_angles(self.grid, query.shape[-1], query)
        angles = F.pad(angles, (0, 0, query.shape[-2] - len(angles), 0))  # others than patches have no place
        turned_query, turned_key = (
            torch.cat([rotated(part, angles) for part in parts], -1) for parts in (queries, keys)
        )
        summed = turned_key.transpose(-2, -1) @ value / value.shape[-2]
        return turned_query @ summed / (total + LEAST_SUM)
