"""Softmax-free attention through landmarks (SOFT, 2207.03341).

N samples of S tokens, H heads of size d, M landmarks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.students.layers import AttentionShape, SoftAttention
from app.recipe.students.layers.attentions import NEWTON_STEPS
from worker.kernels.sigmoid_attention import NO_MASK, AttentionMask
from worker.students.layers.attentions.base import (
    ATTENTIONS,
    SelfAttention,
    in_full_precision,
    off_grid,
    on_grid,
)
from worker.tensors import at_least_float32

RIDGE = 0.01
"""Added to the diagonal of the matrix that is inverted."""
MAX_HALVINGS, LARGEST_ERROR = 10, 1.01
"""The first iterate of the normalised form is halved so many times at most, until no column of its error has a larger
sum."""


def gaussian_weights(one: Tensor, other: Tensor) -> Tensor:
    """exp(-|a - b|^2 / 2) (..., A, B), floating, of vectors (..., A, d) and (..., B, d)."""
    squares = one.square().sum(-1).unsqueeze(-1) + other.square().sum(-1).unsqueeze(-2)
    return torch.exp(-(squares - 2 * one @ other.transpose(-2, -1)).clamp(min=0.0) / 2)


def ridge_inverse(matrix: Tensor, steps: int = NEWTON_STEPS) -> Tensor:
    """(matrix + 0.01 I)^-1 by Newton's iteration, with the gradient of the exact inverse at the last iterate; both
    (..., M, M), floating. The entries of `matrix` are positive, and it is symmetric."""
    ridged = matrix + RIDGE * _identity(matrix)
    with torch.no_grad():
        inverse = 1.8 / matrix.sum(-1, keepdim=True).amax(-2, keepdim=True).square() * ridged
        inverse = _newton(inverse, ridged, steps)
    return inverse + inverse @ (ridged.detach() - ridged) @ inverse  # adds 0, and the gradient -A^-T G A^-T


def normalised_inverse(matrix: Tensor, steps: int = NEWTON_STEPS, *, alike: bool = False) -> Tensor:
    """D^-1/2 matrix^-1 D^-1/2 by Newton's iteration, through which gradients flow, with D the row sums; both
    (..., M, M), floating. The iteration starts from each matrix by itself, or if they are `alike` as the authors' code
    from all together, which couples the samples of a batch."""
    sums = matrix.sum(-1)
    scale = 2 / (sums.amax() if alike else sums.amax(-1)[..., None, None]).square()
    square = matrix @ matrix
    for _ in range(MAX_HALVINGS):
        error = (_identity(matrix) - scale * square).abs().sum(-2)
        largest = error.amax() if alike else error.amax(-1)[..., None, None]
        scale = torch.where(largest > LARGEST_ERROR, scale / 2, scale)
    roots = sums.rsqrt()
    return roots.unsqueeze(-1) * _newton(scale * matrix, matrix, steps) * roots.unsqueeze(-2)


def _newton(inverse: Tensor, matrix: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        inverse = 2 * inverse - inverse @ matrix @ inverse
    return inverse


def _identity(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


@ATTENTIONS.register(SoftAttention)
class SoftSelfAttention(SelfAttention):
    """k1 A^-1 k1^T v + local(v), with k1 the weights of tokens to landmarks and A those between landmarks."""

    def __init__(self, spec: SoftAttention, shape: AttentionShape) -> None:
        super().__init__(spec, shape)
        assert shape.grid is not None  # by the contract
        self.grid, self.steps = shape.grid, NEWTON_STEPS
        self.first_order_only = not spec.normalised
        """Whether the gradient of its gradient is not the second derivative of its outputs: `ridge_inverse`."""
        self.invert: Callable[[Tensor, int], Tensor] = normalised_inverse if spec.normalised else ridge_inverse
        size, heads, side = shape.size, shape.heads, spec.conv_size
        self.landmark = nn.Conv2d(size, size, spec.ratio, spec.ratio, bias=False)
        self.landmark_norm = nn.LayerNorm(size)
        if side:
            self.local = nn.Conv2d(heads, heads, side, padding=side // 2, groups=heads, bias=False)

    def attend(self, *heads: Tensor, mask: AttentionMask = NO_MASK) -> Tensor:
        """See `SelfAttention.attend`; the landmarks are computed in at least float32."""
        query, value = (at_least_float32(each) for each in heads)
        with in_full_precision(query.device):
            query = query * query.shape[-1] ** -0.25
            marks = self._landmarks(query)
            to_marks, between = gaussian_weights(query, marks), gaussian_weights(marks, marks)
            mixed = to_marks @ (self.invert(between, self.steps) @ (to_marks.transpose(-2, -1) @ value))
            return mixed + self._convolved(value) if hasattr(self, "local") else mixed

    def _landmarks(self, query: Tensor) -> Tensor:
        """Landmarks (N, H, M, d) of scaled queries (N, H, S, d)."""
        pooled = self.landmark(on_grid(query, self.grid).flatten(0, 1)).flatten(2).transpose(1, 2)
        return F.gelu(self.landmark_norm(pooled)).view(*query.shape[:2], *pooled.shape[1:])

    def _convolved(self, value: Tensor) -> Tensor:
        """Values (N, H, S, d) on the grid, each channel of a head with the filter of the head."""
        maps = on_grid(value, self.grid).transpose(1, 2)
        convolved = self.local(maps.flatten(0, 1)).view_as(maps)
        return off_grid(convolved.transpose(1, 2), value.shape[-2])
