"""Multi-head self-attention over tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.students.layers import AttentionSpec, LinearAttention, SoftmaxAttention
from worker.students.layers.registry import LayerRegistry

ATTENTIONS = LayerRegistry[[int, int]]()
"""Built from the width of a token and the number of heads, which divides it."""
LEAST_SUM = 1e-6
"""Added to the sum of the weights of linear attention, which may be 0 in low precision."""


class SelfAttention(nn.Module, ABC):
    """Multi-head self-attention over tokens (N, S, D); subclasses define the attention of the heads."""

    def __init__(self, spec: AttentionSpec, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Floating (N, S, D) to the same shape and dtype."""
        query, key, value = (self._split(part) for part in self.qkv(x).chunk(3, dim=-1))
        attended = self.attend(query, key, value)
        mixed: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return mixed

    @abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attended values (N, heads, S, D / heads) of each token, from floating queries, keys and values of the same
        shape."""

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, x.shape[-1] // self.heads).transpose(1, 2)


@ATTENTIONS.register(SoftmaxAttention)
class SoftmaxSelfAttention(SelfAttention):
    """softmax(q k^T / sqrt(D / heads)) v (1706.03762)."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `SelfAttention.attend`."""
        return F.scaled_dot_product_attention(query, key, value)


@ATTENTIONS.register(LinearAttention)
class LinearSelfAttention(SelfAttention):
    """f(q) (sum f(k)^T v) / (f(q) sum f(k)) with f(x) = elu(x) + 1 (2006.16236, equations 5 and 7), without a mask."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `SelfAttention.attend`."""
        queries, keys = _positive(query), _positive(key)
        summed = queries @ (keys.transpose(-2, -1) @ value.to(keys.dtype))
        total = queries @ keys.sum(-2).unsqueeze(-1)
        return (summed / (total + LEAST_SUM)).to(value.dtype)


def _positive(x: Tensor) -> Tensor:
    """elu(x) + 1 in at least float32; as a sum of its branches, because 1 + (exp(x) - 1) cancels if x is far below
    0."""
    wide = x.float() if x.dtype.itemsize < 4 else x
    return F.relu(wide) + wide.clamp(max=0.0).exp()
