"""Activations between layers."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from app.recipe.base import OneOf, Option, Paper


class ActivationSpec(Option):
    """An element-wise function; it has no weights."""

    keeps_input: ClassVar[bool]
    """Whether its gradient needs its input; else its output, which the next layer keeps anyway, is enough."""


class Relu(ActivationSpec):
    """max(x, 0)."""

    keeps_input = False
    kind: Literal["relu"] = "relu"


class LeakyRelu(ActivationSpec):
    """x, or `slope` times x where x is negative. Weights are initialised as for ReLU, for any slope."""

    keeps_input = True
    kind: Literal["leaky-relu"] = "leaky-relu"
    slope: float = Field(0.01, ge=0.0, lt=1.0)
    """Factor of negative values."""


class Gelu(ActivationSpec):
    """x times the probability that a standard normal variable is below x, computed exactly."""

    paper: ClassVar[Paper | None] = Paper("Gaussian Error Linear Units (GELUs)", "1606.08415")
    keeps_input = True
    kind: Literal["gelu"] = "gelu"


class Silu(ActivationSpec):
    """x times its logistic sigmoid, also known as swish."""

    paper: ClassVar[Paper | None] = Paper(
        "Sigmoid-Weighted Linear Units for Neural Network Function Approximation in Reinforcement Learning",
        "1702.03118",
    )
    keeps_input = True
    kind: Literal["silu"] = "silu"


ACTIVATIONS: tuple[type[ActivationSpec], ...] = (Relu, LeakyRelu, Gelu, Silu)
"""All kinds."""
Activation = Annotated[ActivationSpec, OneOf(ACTIVATIONS)]
