"""Layers of built-in networks that compute with few bits, in training already.

Each kind has one implementation of the same name in `worker/students/quantisers`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from app.recipe.base import OneOf, Option, Paper


class QuantisationSpec(Option):
    """Quantisation of the convolutions and linear layers of a network; all else stays in float32."""

    kind: str
    """Which quantisation."""


class Qat(QuantisationSpec):
    """Quantisation-aware training for 8-bit integers: weights with a scale per output channel, inputs of layers with a
    range per tensor that is observed in training.

    The forward pass rounds both, the backward pass takes rounding for the identity, and is 0 for inputs outside the
    range (straight-through estimator). The ONNX graph holds 8-bit weights, with QuantizeLinear and DequantizeLinear.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", "1712.05877"
    )
    kind: Literal["qat"] = "qat"
    momentum: float = Field(0.1, gt=0.0, le=1.0)
    """Share of a batch's least and largest value in the running range; the first batch sets it."""


QUANTISATIONS: tuple[type[QuantisationSpec], ...] = (Qat,)
"""All kinds."""
Quantisation = Annotated[QuantisationSpec, OneOf(QUANTISATIONS)]
