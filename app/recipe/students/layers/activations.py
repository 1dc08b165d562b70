"""Activations between layers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from app.recipe.base import OneOf, Option, Paper


class ActivationSpec(Option):
    """An element-wise function; it has no weights."""

    keeps_input: ClassVar[bool]
    """Whether its gradient needs its input; else its output, which the next layer keeps anyway, is enough."""
    replaces_norms: ClassVar[bool] = False
    """Whether it keeps mean and variance of its layer by itself, so that it is for networks without norms, which are
    initialised for it: `mlp`."""
    kind: str
    """Which activation."""


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


class Selu(ActivationSpec):
    """Scaled exponential linear unit: l x, or l a (exp x - 1) where x is negative, with l = 1.0507 and a = 1.6733: the
    constants with which mean 0 and variance 1 of a layer's values are those of the next layer's. Weights are drawn
    from N(0, 1 / inputs)."""

    paper: ClassVar[Paper | None] = Paper("Self-Normalizing Neural Networks", "1706.02515")
    keeps_input = True
    replaces_norms = True
    kind: Literal["selu"] = "selu"
    alpha_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Probability with which a value is set to -l a in training, its limit for negative values, followed by the affine
    map that restores mean 0 and variance 1."""


class OptimalHermite(ActivationSpec):
    """Cubic polynomial with which infinitely wide and deep networks become classifiers that are consistent for samples
    on a sphere of `dimension`: c He3(x) / sqrt(6) + s He2(x) / sqrt(2) + c x with c = 2^(-dimension / 4) and
    s = sqrt(1 - 2^(1 - dimension / 2)), on x between -5 and 5. Inputs are projected to a sphere, and weights are drawn
    from N(0, 1 / inputs)."""

    paper: ClassVar[Paper | None] = Paper(
        "Wide and Deep Neural Networks Achieve Optimality for Classification", "2204.14126"
    )
    keeps_input = True
    replaces_norms = True
    kind: Literal["optimal-hermite"] = "optimal-hermite"
    dimension: int = Field(2, ge=2, le=64)
    """Dimension of the sphere that the samples lie on: one less than the numbers that describe a sample."""


ACTIVATIONS: tuple[type[ActivationSpec], ...] = (Relu, LeakyRelu, Gelu, Silu, Selu, OptimalHermite)
"""All kinds."""
_BESIDE_NORMS = tuple(kind for kind in ACTIVATIONS if not kind.replaces_norms)


def _refuse_what_replaces_norms(given: Any) -> Any:
    kind = given.get("kind") if isinstance(given, dict) else None
    if kind in {each.model_fields["kind"].default for each in ACTIVATIONS if each.replaces_norms}:
        accepted = ", ".join(each.model_fields["kind"].default for each in _BESIDE_NORMS)
        raise ValueError(f"{kind} is for mlp, which has no norms; accepted: {accepted}")
    return given


Activation = Annotated[ActivationSpec, OneOf(_BESIDE_NORMS), BeforeValidator(_refuse_what_replaces_norms)]
"""Of networks that may have norms."""
MlpActivation = Annotated[ActivationSpec, OneOf(ACTIVATIONS)]
