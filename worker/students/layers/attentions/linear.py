"""Linear attention (2006.16236)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from app.recipe.students.layers import LinearAttention
from worker.kernels.sigmoid_attention import NO_MASK, AttentionMask
from worker.students.layers.attentions.base import ATTENTIONS, SelfAttention
from worker.tensors import at_least_float32

LEAST_SUM = 1e-6
"""Added to the sum of the weights, which may be 0 in low precision."""


@ATTENTIONS.register(LinearAttention)
class LinearSelfAttention(SelfAttention):
    """f(q) (sum f(k)^T v) / (f(q) sum f(k)) with f(x) = elu(x) + 1 (equations 5 and 7)."""

    def attend(self, *heads: Tensor, mask: AttentionMask = NO_MASK) -> Tensor:
        """See `SelfAttention.attend`; of masks that of padding."""
        query, key, value = heads
        queries, keys = _positive(query), _positive(key)
        if mask.tokens is not None:
            keys = keys * mask.tokens[:, None, :, None]
        summed = queries @ (keys.transpose(-2, -1) @ value.to(keys.dtype))
        total = queries @ keys.sum(-2).unsqueeze(-1)
        return (summed / (total + LEAST_SUM)).to(value.dtype)


def _positive(x: Tensor) -> Tensor:
    """elu(x) + 1 in at least float32; as a sum of its branches, because 1 + (exp(x) - 1) cancels if x is far below
    0."""
    wide = at_least_float32(x)
    return F.relu(wide) + wide.clamp(max=0.0).exp()
