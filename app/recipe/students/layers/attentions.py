"""Self-attention between the tokens of a transformer, over queries, keys and values of several heads."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

from app.recipe.base import OneOf, Option, Paper


class AttentionSpec(Option):
    """Weighting of the values of tokens. The linear maps before and after it are the same for every kind."""

    keeps: ClassVar[int]
    """Estimated number of tensors of the size of its tokens that the backward pass needs, without queries, keys and
    values."""

    @abstractmethod
    def flops(self, tokens: int, width: int, heads: int) -> int:
        """Operations of one sample, two per multiply-add, without those of the linear maps."""


class SoftmaxAttention(AttentionSpec):
    """The output of each token is the mean of all values, weighted by the softmax of its query's scaled products with
    the keys."""

    paper: ClassVar[Paper | None] = Paper("Attention Is All You Need", "1706.03762")
    keeps = 1
    kind: Literal["softmax"] = "softmax"

    def flops(self, tokens: int, width: int, heads: int) -> int:
        return 4 * tokens**2 * width


class LinearAttention(AttentionSpec):
    """The weights are products of elu(x) + 1 of queries and keys, divided by their sum; so the values are summed once
    for all tokens, at a cost linear in their number."""

    paper: ClassVar[Paper | None] = Paper(
        "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention", "2006.16236"
    )
    keeps = 10
    kind: Literal["linear"] = "linear"

    def flops(self, tokens: int, width: int, heads: int) -> int:
        size = width // heads
        return 4 * tokens * width * size + 2 * tokens * width  # of keys and values, with queries; of the sums


ATTENTIONS: tuple[type[AttentionSpec], ...] = (SoftmaxAttention, LinearAttention)
"""All kinds."""
Attention = Annotated[AttentionSpec, OneOf(ATTENTIONS)]
