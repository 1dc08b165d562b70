"""Normalize-and-project, around another optimizer."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from app.recipe.base import Paper
from app.recipe.optimizers.adamp import AdamP
from app.recipe.optimizers.adamw import AdamW
from app.recipe.optimizers.base import OptimizerSpec, ParameterGroup
from app.recipe.optimizers.sgd import Sgd
from app.recipe.optimizers.sgdp import SgdP
from app.recipe.optimizers.sinkgd import SinkGd
from app.recipe.optimizers.swan import Swan

Inner = Annotated[Sgd | AdamW | AdamP | SgdP | SinkGd | Swan, Field(discriminator="kind")]


class NormalizeAndProject(OptimizerSpec):
    """After the steps of another optimizer, hidden weights are rescaled to their initial norm.

    For networks with normalisation layers; others are refused. The weights of hidden layers keep their norms, scale and
    offset of a normalisation layer together keep the norm of a scale of ones. The output layer, embeddings and other
    vectors are not rescaled. Weight decay has no effect on rescaled weights, so only the schedule lowers the rate.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Normalization and effective learning rates in reinforcement learning", "2407.01800"
    )
    applies: ClassVar[str] = "Networks with normalisation layers: every student but mlp."
    kind: Literal["nap"] = "nap"
    inner: Inner
    """The optimizer that takes the steps, with the learning rate."""
    every_steps: int = Field(1, ge=1, le=10_000)
    """Optimizer steps between two projections."""

    @model_validator(mode="after")
    def _groups_are_the_inner_optimizers(self) -> Self:
        if self.groups:
            raise ValueError("groups belong to `inner`, which takes the steps")
        return self

    def with_groups(self, groups: list[ParameterGroup]) -> Self:
        return self.model_copy(update={"inner": self.inner.with_groups(groups)})

    @property
    def stepping(self) -> OptimizerSpec:
        return self.inner

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return self.inner.lr

    def state_size(self, parameters: int, hidden_weights: int) -> int:
        return self.inner.state_size(parameters, hidden_weights)
