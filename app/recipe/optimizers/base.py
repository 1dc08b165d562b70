"""Fields and papers that several optimizers share."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, StringConstraints, model_validator

from app.recipe.base import NonNegative, Option, Paper, Positive, Spec

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Betas = Annotated[tuple[Beta, Beta], Field(strict=False)]
PROJECTION = Paper("AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights", "2006.08217")


ParameterPattern = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9_.*?\[\]!-]+$")]


class ParameterGroup(Spec):
    """Some of a network's parameters, with settings of their own."""

    match: ParameterPattern
    """Name of a parameter, or path of a module, which stands for all parameters in it; `*` and `?` stand for any text
    and any character. `stillhouse modules MODEL` lists a model's paths."""
    lr: NonNegative | None = None
    """Peak learning rate; 0: the parameters do not move. None: the optimizer's."""
    weight_decay: NonNegative | None = None
    """None: the optimizer's."""

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.lr is None and self.weight_decay is None:
            raise ValueError("must have lr, weight_decay, or both")
        return self


class OptimizerSpec(Option):
    """Base of the optimizers."""

    groups: Annotated[list[ParameterGroup], Field(max_length=32)] = []
    """Parameters with a learning rate or a weight decay of their own; the first group that matches a parameter has it.
    A group that matches no parameter of the student is refused."""

    def with_groups(self, groups: list[ParameterGroup]) -> Self:
        """The same with these groups."""
        return self.model_copy(update={"groups": groups})

    @property
    def stepping(self) -> OptimizerSpec:
        """The optimizer that takes the steps, whose groups count: itself, unless it works around another one."""
        return self

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        decays = any(group.weight_decay is not None for group in self.groups)
        if decays and "weight_decay" not in type(self).model_fields:
            raise ValueError("groups can't have a weight_decay: this optimizer has none")
        return self

    def state_size(self, parameters: int, hidden_weights: int) -> int:
        """Numbers in its state for `parameters` weights, `hidden_weights` of them in the matrices of hidden layers."""
        return parameters


class Normalized(OptimizerSpec):
    """Base of the optimizers of normalised gradients: Adam for all but the weight matrices of hidden layers."""

    applies: ClassVar[str] = "Networks with hidden layers; whatever is no weight matrix of one is trained by Adam."
    lr: Positive
    """Peak learning rate of the parameters that Adam trains."""
    matrix_ratio: Positive
    """Rate of hidden layers' matrices as a share of `lr`; kernels of convolutions are matrices of (channels, rest)."""
    betas: Betas = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: Positive = 1e-8
    """Added to the divisor, to avoid division by zero."""
    weight_decay: NonNegative = 0.0
    """Decoupled from the gradient, of all parameters; the papers have none."""

    def state_size(self, parameters: int, hidden_weights: int) -> int:
        return 2 * (parameters - hidden_weights)
