"""SWAN."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from app.recipe.base import Paper, Positive
from app.recipe.optimizers.base import Normalized


class Swan(Normalized):
    """Gradients whose rows are standardised and then made orthogonal to each other, without any state.

    That is for the weight matrices of hidden layers; vectors, embeddings and the output layer are trained by Adam, with
    its two moments. Everything with only one row or column counts as a vector. The rates are of our own choice.
    """

    paper: ClassVar[Paper | None] = Paper(
        "SWAN: SGD with Normalization and Whitening Enables Stateless LLM Training", "2412.13148"
    )
    kind: Literal["swan"] = "swan"
    lr: Positive = 1e-3
    """Peak learning rate of what Adam trains: vectors, embeddings, output layer."""
    matrix_ratio: Positive = 1.0
    """Rate of hidden layers' matrices as a share of `lr`; kernels of convolutions are matrices of (channels, rest)."""
    whitening: Literal["newton-schulz", "exact"] = "newton-schulz"
    """By products of matrices, or by singular values, which is slow on a GPU."""
    iterations: int = Field(10, ge=1, le=100)
    """Steps of Newton and Schulz; directions that are still short after them stay short."""
    rescale: bool = True
    """Give the whitened gradient the norm that it had before."""
