"""SWAN."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from app.recipe.base import Paper, Positive
from app.recipe.optimizers.base import Normalized


class Swan(Normalized):
    """Gradients whose rows are standardised and then made orthogonal to each other, without any state.

    That is for the weight matrices of hidden layers; vectors, embeddings and the output layer are trained by Adam, with
    its two moments. Everything with only one row or column counts as a vector. The default rates are this project's.
    """

    paper: ClassVar[Paper | None] = Paper(
        "SWAN: SGD with Normalization and Whitening Enables Stateless LLM Training", "2412.13148"
    )
    kind: Literal["swan"] = "swan"
    lr: Positive = 1e-3
    """Peak learning rate of the parameters that Adam trains: vectors, embeddings, output layer."""
    matrix_ratio: Positive = 1.0
    """Rate of hidden layers' matrices as a share of `lr`; kernels of convolutions are matrices of (channels, rest)."""
    whitening: Literal["newton-schulz", "exact"] = "newton-schulz"
    """Whitening by products of matrices, or by singular values, which is slow on a GPU."""
    iterations: int = Field(10, ge=1, le=100)
    """Newton-Schulz iterations; small singular values may not reach 1."""
    rescale: bool = True
    """Rescale the whitened gradient to its norm before whitening."""
