"""Layers of built-in networks that compute with few bits, in training already.

Each kind has one implementation of the same name in `worker/students/quantisers`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from app.recipe.base import OneOf, Option, Paper


class QuantisationSpec(Option):
    """Quantisation of the convolutions and linear layers of a network; all else stays in float32."""

    formats: ClassVar[tuple[Literal["integer", "spiking"], ...]] = ()
    """Export formats of such students alone, by default."""
    rounds_inputs: ClassVar[bool] = True
    """Whether inputs of layers are rounded, so that a difference in the last bit can become one of a whole step."""
    has_bias: ClassVar[bool] = True
    """Whether layers keep their bias."""
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


class ShiftQuant(QuantisationSpec):
    """Training for integers of few bits with shifts: the inputs of a layer in groups of channels, whose scales are
    powers of two apart, so that a layer is a product of integers, left shifts, and one scale.

    Group g holds the channels whose largest magnitude is from 2^-(g+1) to 2^-g of the largest of all; the last group
    also all smaller ones. Weights have one scale per layer. The gradients of a layer's outputs are quantised like its
    inputs, with stochastic rounding drawn from the job's seed. For `mlp`, whose artifact `model.integer.npz` is read
    with NumPy alone.
    """

    paper: ClassVar[Paper | None] = Paper("Towards Accurate and Efficient Sub-8-Bit Integer Training", "2411.10948")
    formats = ("integer",)
    kind: Literal["shift-quant"] = "shift-quant"
    bits: Literal[4, 6, 8] = 6
    """Bits of inputs, weights and gradients, with the sign."""
    groups: int = Field(4, ge=1, le=8)
    """Groups of channels, G; 1 is one scale for all."""
    momentum: float = Field(0.1, gt=0.0, le=1.0)
    """Share of a batch's largest magnitudes in their running values; the first batch sets them."""

    @property
    def largest(self) -> int:
        """Largest integer of these bits, q."""
        return int(2 ** (self.bits - 1) - 1)

    def sum_bound(self, inputs: int) -> int:
        """Largest magnitude of a sum over so many inputs: K q^2 2^(G-1)."""
        return inputs * self.largest**2 << (self.groups - 1)


class Binary(QuantisationSpec):
    """Binary weights in all layers but the first and the last, and export as a spiking network.

    Latent weights are centred over the inputs and clipped to [-1, 1] in every training step, and used as their signs
    times their mean magnitude in each output unit. Layers have no bias, and ReLU between them, so that integrate-and-
    fire neurons approximate them: after training the activations' percentile over the first 1024 training samples
    becomes the threshold of a layer, and `model.spiking.npz` is simulated with NumPy alone. For `mlp` with two hidden
    layers or more.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Exploring the Connection Between Binary and Spiking Neural Networks", "2002.10064"
    )
    formats = ("spiking",)
    rounds_inputs = has_bias = False
    kind: Literal["binary"] = "binary"
    percentile: float = Field(99.7, ge=50.0, le=100.0)
    """Percentile of a layer's activations, zeros included, that its neurons spike for in every step."""
    steps: int = Field(100, ge=1, le=1000)
    """Time steps T of the simulation; an input is repeated in each. The report has the metrics after 10, 20, 50 and 100
    steps, as far as these are not more, and after T."""


QUANTISATIONS: tuple[type[QuantisationSpec], ...] = (Qat, ShiftQuant, Binary)
"""All kinds."""
Quantisation = Annotated[QuantisationSpec, OneOf(QUANTISATIONS)]
