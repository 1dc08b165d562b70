"""SinkGD."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from app.recipe.base import Paper, Positive
from app.recipe.optimizers.base import Normalized


class SinkGd(Normalized):
    """Gradients whose rows and columns are scaled in turn to equal norms, without any state.

    That is for the weight matrices of hidden layers; vectors, embeddings and the output layer are trained by Adam, with
    its two moments. Everything with only one row or column counts as a vector.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Gradient Multi-Normalization for Stateless and Scalable LLM Training", "2502.06742"
    )
    kind: Literal["sinkgd"] = "sinkgd"
    lr: Positive = 0.02
    """Peak learning rate of the parameters that Adam trains: vectors, embeddings, output layer."""
    matrix_ratio: Positive = 0.05
    """Rate of hidden layers' matrices as a share of `lr`; kernels of convolutions are matrices of (channels, rest)."""
    iterations: int = Field(5, ge=1, le=100)
    """Number of times that rows, then columns, are scaled; columns are exact in the end, rows nearly."""
