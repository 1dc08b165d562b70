"""The built-in network that reads texts."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from app.recipe.base import Option, Paper
from app.recipe.students.heads import Head, LinearHead
from app.recipe.students.layers import (
    Activation,
    Attention,
    Gelu,
    LayerNorm,
    SoftmaxAttention,
    TokenNorm,
    by_default,
)


class TextTransformer(Option):
    """Small encoder of texts: token embeddings, positions, pre-norm blocks that see no padding.

    The features of a text are the mean of its tokens that aren't padding, special ones included, after a last norm.
    """

    paper: ClassVar[Paper | None] = Paper("Attention Is All You Need", "1706.03762")
    architecture: Literal["transformer"] = "transformer"
    width: int = Field(128, ge=1, le=16_384)
    """Size of a token's embedding; must be a multiple of `heads`."""
    depth: int = Field(2, ge=1, le=64)
    """Number of transformer blocks."""
    heads: int = Field(4, ge=1, le=64)
    """Number of attention heads."""
    mlp_ratio: float = Field(4.0, gt=0.0, le=16.0)
    """Width of a block's feed-forward layer as a multiple of `width`."""
    positions: Literal["learned", "sinusoidal"] = "learned"
    """Vectors added to the embeddings by place: trained, or the paper's sines and cosines, which have no weights."""
    norm: TokenNorm = by_default(LayerNorm())
    """Norm before attention, the feed-forward layers and the pooling."""
    attention: Attention = by_default(SoftmaxAttention())
    """Attention between tokens, of a kind that can leave out padding."""
    activation: Activation = by_default(Gelu())
    """Activation between the two feed-forward layers of a block."""
    head: Head = by_default(LinearHead())
    """Last layer, from the features to the outputs."""
