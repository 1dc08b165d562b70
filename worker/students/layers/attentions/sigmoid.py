"""Sigmoid attention (2409.04431)."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from app.recipe.students.layers import AttentionShape, SigmoidAttention
from worker.students.layers.attentions.base import ATTENTIONS, NO_MASK, AttentionMask, SelfAttention
from worker.tensors import at_least_float32


def sigmoid_attention(query: Tensor, key: Tensor, value: Tensor, bias: float, mask: AttentionMask = NO_MASK) -> Tensor:
    """sigmoid(q k^T / sqrt(d) + bias) v: (N, H, Q, d) in the dtype of `value`, from floating queries (N, H, Q, d) and
    keys and values (N, G, K, d); H is a multiple of G, and neighbouring heads of queries share keys and values. A query
    that sees no key gets zeros. The weights are computed in at least float32."""
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    products = at_least_float32(query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5)
    seen = mask.visible(query.shape[-2], key.shape[-2], query.device)
    weights = torch.sigmoid(products + bias)
    if seen is not None:
        weights = weights * seen
    return weights.to(value.dtype) @ value


@ATTENTIONS.register(SigmoidAttention)
class SigmoidSelfAttention(SelfAttention):
    """Sigmoid attention with one offset for all pairs."""

    def __init__(self, spec: SigmoidAttention, shape: AttentionShape) -> None:
        super().__init__(spec, shape)
        self.bias = -log(shape.tokens) if spec.bias is None else spec.bias

    def attend(self, *heads: Tensor, mask: AttentionMask = NO_MASK) -> Tensor:
        """See `SelfAttention.attend`."""
        query, key, value = heads
        return sigmoid_attention(query, key, value, self.bias, mask)
