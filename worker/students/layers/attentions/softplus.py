"""Length-scaled softplus attention with re-weighting (2501.13428)."""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.students.layers import AttentionShape, SoftplusAttention
from worker.kernels.sigmoid_attention import NO_MASK, AttentionMask
from worker.students.layers.attentions.base import ATTENTIONS, SelfAttention
from worker.tensors import at_least_float32

LEAST_EXCESS = 1e-6
"""Weights this little above the offset, relative to their average, are suppressed: equal ones differ by rounding, which
the re-weighting would make all the difference."""
FAR = -30.0
"""Below, log(log(1 + exp x)) is x to 14 digits."""


def softplus_weights(query: Tensor, key: Tensor, mask: AttentionMask, power: float | None, offset: float) -> Tensor:
    """Weights (N, H, Q, K), at least float32, that add up to 1 in every row with a visible key and are 0 in others,
    from floating queries (N, H, Q, d) and keys (N, H, K, d)."""
    seen = mask.visible(query.shape[-2], key.shape[-2], query.device)
    products = at_least_float32(query @ key.transpose(-2, -1))
    if seen is None:
        seen = torch.ones(1, 1, 1, key.shape[-2], dtype=torch.bool, device=query.device)
    count = seen.sum(-1, keepdim=True).clamp(min=1).to(products.dtype)
    size = query.shape[-1]
    weights = _softmax(_log_softplus(products * (log(size) / size**0.5 * count.log())), seen)
    return weights if power is None else _reweighted(weights, count, power, offset)


def _log_softplus(x: Tensor) -> Tensor:
    """log(log(1 + exp x)), which is x where that is far below 0: so no row of weights vanishes."""
    near = x.clamp(min=FAR)
    return torch.where(x > FAR, (F.relu(near) + torch.log1p(torch.exp(-near.abs()))).log(), x)


def _softmax(x: Tensor, seen: Tensor) -> Tensor:
    """Softmax over the entries that are `seen` (bool); zeros for others."""
    empty = ~seen.any(-1, keepdim=True)
    return x.masked_fill(~(seen | empty), float("-inf")).softmax(-1) * seen


def _reweighted(weights: Tensor, count: Tensor, power: float, offset: float) -> Tensor:
    """max(count weights - offset, 0)^power / its sum, by logarithms, in which high powers do not vanish."""
    excess = count * weights - torch.where(count > 1, offset, 0.0)
    kept = excess > LEAST_EXCESS
    sharp = _softmax(power * excess.clamp(min=LEAST_EXCESS).log(), kept)
    return torch.where(kept.any(-1, keepdim=True), sharp, weights)


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
