"""Softmax attention (1706.03762)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from app.recipe.students.layers import SoftmaxAttention
from worker.kernels.sigmoid_attention import NO_MASK, AttentionMask
from worker.students.layers.attentions.base import ATTENTIONS, SelfAttention


@ATTENTIONS.register(SoftmaxAttention)
class SoftmaxSelfAttention(SelfAttention):
    """softmax(q k^T / sqrt(d)) v."""

    def attend(self, *heads: Tensor, mask: AttentionMask = NO_MASK) -> Tensor:
        """See `SelfAttention.attend`."""
        query, key, value = heads
        if mask == AttentionMask(causal=True) and query.shape[-2] == key.shape[-2]:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        seen = mask.visible(query.shape[-2], key.shape[-2], query.device)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
