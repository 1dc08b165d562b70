"""Length-scaled softplus attention with re-weighting (2501.13428)."""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.students.layers import AttentionShape, SoftplusAttention
from worker.students.layers.attentions.base import ATTENTIONS, NO_MASK, AttentionMask, SelfAttention
from worker.tensors import at_least_float32

LEAST_EXCESS = 1e-6
"""Weights this little above the offset, relative to their average, are suppressed: equal ones differ by rounding, which
the re-weighting would make all the difference."""
EXACT = 1e9
"""Product above which softplus is the identity; with torch's 20 gradients would be off."""


def softplus_weights(query: Tensor, key: Tensor, mask: AttentionMask, power: float | None, offset: float) -> Tensor:
    """Weights (N, H, Q, K), at least float32, that add up to 1 in every row with a visible key and are 0 in others,
    from floating queries (N, H, Q, d) and keys (N, H, K, d)."""
    seen = mask.visible(query.shape[-2], key.shape[-2], query.device)
    products = at_least_float32(query @ key.transpose(-2, -1))
    if seen is None:
        seen = torch.ones(1, 1, 1, key.shape[-2], dtype=torch.bool, device=query.device)
    count = seen.sum(-1, keepdim=True).clamp(min=1).to(products.dtype)
    size = query.shape[-1]
    positive = _softplus(products * (log(size) / size**0.5 * count.log())) * seen
    weights = positive / positive.sum(-1, keepdim=True).clamp(min=torch.finfo(products.dtype).tiny)
    return weights if power is None else _reweighted(weights, count, power, offset)


def _softplus(x: Tensor) -> Tensor:
    return F.relu(x) + torch.log1p(torch.exp(-x.abs()))


def _reweighted(weights: Tensor, count: Tensor, power: float, offset: float) -> Tensor:
    """max(count weights - offset, 0)^power / its sum, by logarithms, in which high powers do not vanish."""
    excess = count * weights - torch.where(count > 1, offset, 0.0)
    kept = excess > LEAST_EXCESS
    logarithms = power * excess.clamp(min=LEAST_EXCESS).log()
    some = kept.any(-1, keepdim=True)
    sharp = logarithms.masked_fill(~kept & some, float("-inf")).softmax(-1)
    return torch.where(some, sharp, weights)


@ATTENTIONS.register(SoftplusAttention)
class SoftplusSelfAttention(SelfAttention):
    """Softplus attention; see `softplus_weights`."""

    def __init__(self, spec: SoftplusAttention, shape: AttentionShape) -> None:
        super().__init__(spec, shape)
        self.power, self.offset = spec.power, spec.offset

    def attend(self, *heads: Tensor, mask: AttentionMask = NO_MASK) -> Tensor:
        """See `SelfAttention.attend`."""
        query, key, value = heads
        return softplus_weights(query, key, mask, self.power, self.offset).to(value.dtype) @ value
