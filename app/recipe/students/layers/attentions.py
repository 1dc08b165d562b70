"""Self-attention between the tokens of a transformer, over queries, keys and values of several heads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from app.recipe.base import NonNegative, OneOf, Option, Paper
from app.recipe.problem import Problem

Mask = Literal["padding", "causal"]
NEWTON_STEPS = 20
"""Steps of Newton's iteration for the inverse of `soft` attention."""
LOCAL_SIDE = 5
"""Side of the convolution of the values of `nala` attention."""


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of an attention layer and of its input."""

    tokens: int
    """Tokens of a sample; of a text the most that it may have."""
    width: int
    """Size of a token."""
    heads: int
    """Number of heads, which divides the width."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the patches of an image, which are the last of the tokens; none: a text."""

    @property
    def size(self) -> int:
        """Size of a head."""
        return self.width // self.heads

    @property
    def positions(self) -> int:
        """Tokens on the grid."""
        return self.grid[0] * self.grid[1] if self.grid else 0


class AttentionCost(NamedTuple):
    """Costs of one sample between the linear maps."""

    flops: int
    """Operations, two per multiply-add of a matrix product or a convolution."""
    kept: int
    """Estimated elements that the backward pass needs, without the outputs of the linear maps."""
    largest: int = 0
    """Elements of its largest tensor, if that is larger than those outputs."""
    parameters: int = 0
    """Trained numbers."""
    matrices: int = 0
    """Those of the `parameters` in arrays of more than one row and column, whose first axis is the rows."""


class AttentionSpec(Option):
    """Weighting of the values of tokens, between linear maps of each token."""

    projections: ClassVar[str] = "qkv"
    """One letter for each linear map before it, of the width of a token; they are one module of this name. `qkv` are
    queries, keys and values."""
    masks: ClassVar[frozenset[Mask]] = frozenset()
    """Masks that it can apply: `padding` of texts, and `causal`, by which a token sees no later ones."""
    needs_grid: ClassVar[bool] = False
    """Whether it is for the patches of whole images alone, because it needs their places."""
    narrows: ClassVar[bool] = True
    """Whether a smaller copy of it may have fewer heads or a smaller width."""
    kind: str
    """Which attention."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of its modules beside the linear maps."""
        return ()

    @abstractmethod
    def cost(self, shape: AttentionShape) -> AttentionCost:
        """Costs of one sample."""

    def problems(self, shape: AttentionShape, path: str) -> Iterator[Problem]:
        """Problems of sizes that it is not for; `path` is the path of its field."""
        yield from ()


class SoftmaxAttention(AttentionSpec):
    """The output of each token is the mean of all values, weighted by the softmax of its query's scaled products with
    the keys."""

    paper: ClassVar[Paper | None] = Paper("Attention Is All You Need", "1706.03762")
    masks = frozenset({"padding", "causal"})
    kind: Literal["softmax"] = "softmax"

    def cost(self, shape: AttentionShape) -> AttentionCost:
        return AttentionCost(_of_pairs(shape), shape.tokens * shape.width)


class LinearAttention(AttentionSpec):
    """The weights are products of elu(x) + 1 of queries and keys, divided by their sum; so the values are summed once
    for all tokens, at a cost linear in their number."""

    paper: ClassVar[Paper | None] = Paper(
        "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention", "2006.16236"
    )
    masks = frozenset({"padding"})
    kind: Literal["linear"] = "linear"

    def cost(self, shape: AttentionShape) -> AttentionCost:
        elements = shape.tokens * shape.width
        return AttentionCost(4 * elements * shape.size + 2 * elements, 10 * elements)


class SigmoidAttention(AttentionSpec):
    """The weights are the logistic sigmoids of the scaled products of queries and keys plus an offset, and their sum is
    not divided out: sigmoid(q k^T / sqrt(d) + bias) v."""

    paper: ClassVar[Paper | None] = Paper(
        "Theory, Analysis, and Best Practices for Sigmoid Self-Attention", "2409.04431"
    )
    masks = frozenset({"padding", "causal"})
    kind: Literal["sigmoid"] = "sigmoid"
    bias: float | None = Field(None, ge=-100.0, le=100.0)
    """Offset of the products; none: -log of the number of tokens of a sample (of a text: of `data.max_length`), with
    which the weights of a fresh layer add up to about 1. It stays the same for shorter texts."""

    def cost(self, shape: AttentionShape) -> AttentionCost:
        pairs = shape.heads * shape.tokens**2
        return AttentionCost(_of_pairs(shape), shape.tokens * shape.width + pairs, pairs)


class SoftplusAttention(AttentionSpec):
    """Length-scaled softplus attention (LSSA), with re-weighting (LSSAR): it stays sharp for more tokens than it was
    trained on.

    A_ij = softplus(log(d) log(N_i) / sqrt(d) q_i k_j) / its sum over the N_i tokens that token i sees, d the size of a
    head. Re-weighted: W_ij = max(N_i A_ij - offset, 0)^power / its sum, so that the offset 1 keeps the keys above the
    average. A token whose keys are all suppressed, or that sees itself alone, has the weights A. The scale follows the
    paper's abstract and what others write about it.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Softplus Attention with Re-weighting Boosts Length Extrapolation in Large Language Models", "2501.13428"
    )
    masks = frozenset({"padding", "causal"})
    kind: Literal["softplus"] = "softplus"
    power: float | None = Field(3.0, ge=1.0, le=15.0)
    """Exponent of the re-weighting; the paper tries up to 15. None: no re-weighting."""
    offset: NonNegative = 1.0
    """Subtracted from the weights, relative to their average."""

    def cost(self, shape: AttentionShape) -> AttentionCost:
        pairs = shape.heads * shape.tokens**2
        kept = 7 if self.power is None else 10
        return AttentionCost(_of_pairs(shape), shape.tokens * shape.width + kept * pairs, pairs)


class SoftAttention(AttentionSpec):
    """SOFT: weights exp(-|q_i - q_j|^2 / 2) of queries that are keys too, as a product of low rank through landmarks,
    at a cost linear in the number of patches if the number of landmarks stays the same.

    Landmarks are queries pooled by a convolution of side and stride `ratio`, a layer norm and GELU. With k1 the weights
    of tokens to landmarks and A those between landmarks, the output is k1 A^-1 k1^T v, plus a convolution of the values
    on the grid of patches; the class token has no landmark. A^-1 is computed by Newton's iteration in float32.
    """

    paper: ClassVar[Paper | None] = Paper("Softmax-free Linear Transformers", "2207.03341")
    projections = "qv"
    needs_grid = True
    narrows = False
    kind: Literal["soft"] = "soft"
    ratio: int = Field(2, ge=1, le=64)
    """Side of the square of patches with one landmark; must divide the rows and columns of patches."""
    conv_size: Literal[0, 3, 5, 7, 9] = 3
    """Side of the convolution of the values, one filter per head; 0: none."""
    normalised: bool = False
    """The symmetric normalisation of the paper's version for dense tasks: the inverse is scaled by the roots of the row
    sums of A. Without it A + 0.01 I is inverted, and the gradient is that of the exact inverse."""

    @property
    def parts(self) -> tuple[str, ...]:
        return ("landmark", "landmark_norm", *(["local"] if self.conv_size else []))

    def cost(self, shape: AttentionShape) -> AttentionCost:
        marks, size = shape.positions // self.ratio**2, shape.size
        products = size * (marks * self.ratio**2 * size + 3 * shape.tokens * marks + 2 * marks**2)
        inverse = (2 * NEWTON_STEPS + (1 if self.normalised else 2)) * marks**3
        local, filters = self.conv_size**2 * shape.heads, self.ratio**2 * size**2
        return AttentionCost(
            2 * shape.heads * (products + inverse) + 2 * local * size * shape.positions,
            self._kept(shape, marks),
            shape.heads * marks * max(shape.tokens, marks),
            filters + 2 * size + local,
            (filters if size > 1 else 0) + (local if shape.heads > 1 else 0),
        )

    def _kept(self, shape: AttentionShape, marks: int) -> int:
        """Every step of the normalised form keeps three matrices of the landmarks."""
        matrices = 5 + 3 * NEWTON_STEPS if self.normalised else 4
        linear = ((4 if self.conv_size else 3) * shape.tokens + 5 * marks) * shape.width
        return linear + shape.heads * (2 * shape.tokens * marks + matrices * marks**2)

    def problems(self, shape: AttentionShape, path: str) -> Iterator[Problem]:
        if shape.grid and any(side % self.ratio for side in shape.grid):
            sides = " x ".join(map(str, shape.grid))
            yield Problem(f"{path}.ratio", f"{self.ratio} does not divide {sides} patches", f"a divisor of {sides}")


class NalaAttention(AttentionSpec):
    """NaLaFormer: linear attention whose sharpness follows the norm of the query, at a cost linear in the number of
    patches.

    With n the norm of a query, its positive and negative parts, divided by n, are raised to the power `power` (`half` +
    tanh n); those of the cubed keys are taken as they are. Both are rotated by their row and column of patches before
    they are multiplied, and divided by the product without rotation; a 5 x 5 convolution of the values on the grid is
    added, then follow a layer norm and a gate. The class token is neither rotated nor convolved.
    """

    paper: ClassVar[Paper | None] = Paper(
        "NaLaFormer: Norm-Aware Linear Attention for Transformer Models", "2506.21137"
    )
    projections = "qkvg"
    needs_grid = True
    narrows = False
    kind: Literal["nala"] = "nala"
    power: float = Field(3.0, gt=0.0, le=16.0)
    """Factor of the exponent of queries."""
    half: float = Field(0.5, gt=0.0, le=4.0)
    """Exponent of queries of norm 0, before the factor."""

    @property
    def parts(self) -> tuple[str, ...]:
        return ("local", "norm")

    def cost(self, shape: AttentionShape) -> AttentionCost:
        elements, local = shape.tokens * shape.width, LOCAL_SIDE**2 * shape.width
        products = 8 * elements * shape.size + 4 * elements
        matrices = local if shape.width > 1 else 0
        return AttentionCost(
            products + 2 * local * shape.positions, 21 * elements, 0, local + 3 * shape.width, matrices
        )

    def problems(self, shape: AttentionShape, path: str) -> Iterator[Problem]:
        if shape.size % 4:
            found = f"is nala, whose heads are rotated in two directions, and a head has the size {shape.size}"
            yield Problem(f"{path}.kind", found, "heads whose size is a multiple of 4, or another kind")


def _of_pairs(shape: AttentionShape) -> int:
    """Operations of products of all pairs of tokens: of queries and keys, and with the values."""
    return 4 * shape.tokens**2 * shape.width


ATTENTIONS: tuple[type[AttentionSpec], ...] = (
    SoftmaxAttention,
    LinearAttention,
    SigmoidAttention,
    SoftplusAttention,
    SoftAttention,
    NalaAttention,
)
"""All kinds."""
Attention = Annotated[AttentionSpec, OneOf(ATTENTIONS)]


def attentions_with(mask: Mask) -> str:
    """Names of the kinds that can apply a mask, for a message."""
    return ", ".join(kind.model_fields["kind"].default for kind in ATTENTIONS if mask in kind.masks)
