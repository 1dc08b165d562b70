"""Sigmoid attention (2409.04431)."""

from __future__ import annotations

from math import log

from torch import Tensor

from app.recipe.students.layers import AttentionShape, SigmoidAttention
from worker.kernels.sigmoid_attention import NO_MASK, AttentionMask, sigmoid_attention
from worker.students.layers.attentions.base import ATTENTIONS, SelfAttention


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
