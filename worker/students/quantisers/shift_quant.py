"""ShiftQuant (2411.10948): integers of few bits in groups of channels whose scales are powers of two apart.

With m_c the largest magnitude of channel c, r their maximum and q = 2^(bits-1) - 1:

    group(c) = clip(floor(log2(r / m_c)), 0, G - 1)        the last one if m_c = 0
    scale_g = (r / q) 2^-g;  codes X = clip(round(x / scale_group(c)), -q, q);  weights W with the scale w / q
    sums = sum_g (X_g @ W_g) << (G - 1 - g);  y = sums (r / q) (w / q) 2^-(G-1)

Reconstructed from the abstract; the rounding and the choice of groups are this project's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from app.recipe.students.quantisation import ShiftQuant
from worker.errors import UserError
from worker.students.quantisers.base import QUANTISERS, Product, Quantiser, straight_through

MAX_SUM = 2**31 - 1
"""Largest magnitude of a sum."""
LEAST = 1e-30
"""Least magnitude that is divided by, so that zeros stay zeros."""


class ShiftScales(NamedTuple):
    """Scales of the channels of one operand."""

    groups: Tensor
    """Group of each channel, (C,) int64."""
    shifts: Tensor
    """Left shift of the products of each channel, G - 1 - group, (C,) int64."""
    scale: Tensor
    """Scale of the first group, r / q, a floating scalar."""
    factors: Tensor
    """2^shift of each channel, (C,) int64."""
    steps: Tensor
    """Scale of each channel, (C,) floating."""


def shift_scales(maxima: Tensor, largest: int, groups: int) -> ShiftScales:
    """Scales for the largest magnitudes (C,), floating, of the channels, which `largest`, q, stands for."""
    whole = maxima.max().clamp(min=LEAST)
    octaves = torch.floor(torch.log2(whole / maxima.clamp(min=LEAST)))
    found = octaves.clamp(0, groups - 1).long()
    scale = whole / largest
    shifts = groups - 1 - found
    factors = torch.bitwise_left_shift(torch.ones_like(shifts), shifts)
    return ShiftScales(found, shifts, scale, factors, factors * (scale / 2 ** (groups - 1)))


def codes_of(values: Tensor, steps: Tensor, largest: int, noise: Tensor | None = None) -> Tensor:
    """Whole numbers from -q to q, floating, for `values` (..., C) and `steps` (C,): rounded to the nearest, halves to
    even; with `noise` in [0, 1), of the shape of the values, floor(x / s + u), which is unbiased."""
    scaled = values / steps
    rounded = torch.round(scaled) if noise is None else torch.floor(scaled + noise)
    return rounded.clamp(-largest, largest)


def weight_codes(weight: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Codes of a weight (O, I), floating, and their scale, a scalar."""
    scale = weight.abs().max().clamp(min=LEAST) / largest
    return codes_of(weight, scale, largest), scale


@QUANTISERS.register(ShiftQuant)
class ShiftQuantiser(Quantiser):
    """Quantises inputs (..., C), weight (O, C) and, in training, the gradients of the outputs (..., O).

    In evaluation the sums are computed of integers, exactly, in float64: on every device, in any order.
    """

    maxima: Tensor
    """Running largest magnitude of each channel, (C,) float32; 0 before the first batch."""

    def __init__(self, spec: ShiftQuant, layer: nn.Module) -> None:
        super().__init__()
        assert isinstance(layer, nn.Linear)  # the contract refuses convolutions
        if spec.sum_bound(layer.in_features) > MAX_SUM:
            found = f"sums over {layer.in_features} inputs may exceed 32 bits; accepted: fewer groups or bits"
            raise UserError("invalid_job", found, "student.quantise.groups")
        self.spec = spec
        self.register_buffer("maxima", torch.zeros(layer.in_features))

    def multiply(self, product: Product, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `Quantiser.multiply`."""
        if self.training:
            outputs = super().multiply(product, inputs, weight, bias)
            rounded: Tensor = _RoundedGradient.apply(outputs, self.spec)  # type: ignore[no-untyped-call]  # torch's
            return rounded
        scales, codes = self.input_scales(), self.integer_weight(weight)
        values = codes_of(inputs.float(), scales.steps, self.spec.largest) * scales.factors
        sums = product(values.double(), codes[0].double(), None)
        outputs = sums.float() * self.unit(weight)
        return (outputs if bias is None else outputs + bias).to(inputs.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """See `Quantiser.forward`; the largest magnitudes are updated first."""
        values = inputs.float()
        self._observe(values.detach())
        steps, largest = self.input_scales().steps, self.spec.largest
        within = torch.minimum(torch.maximum(values, -largest * steps), largest * steps)
        return straight_through(within, codes_of(values.detach(), steps, largest) * steps).to(inputs.dtype)

    def weight(self, weight: Tensor) -> Tensor:
        """See `Quantiser.weight`."""
        codes, scale = self.integer_weight(weight)
        return straight_through(weight, (codes * scale).to(weight.dtype))

    def integer_weight(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (O, C) of a weight, whole numbers in float32, and their scale, a scalar."""
        return weight_codes(weight.detach().float(), self.spec.largest)

    def unit(self, weight: Tensor) -> Tensor:
        """What a sum of 1 stands for, a scalar float32: (r / q) (w / q) 2^-(G-1)."""
        unit: Tensor = self.input_scales().scale * self.integer_weight(weight)[1] / 2 ** (self.spec.groups - 1)
        return unit

    def input_scales(self) -> ShiftScales:
        """Scales of the inputs."""
        return shift_scales(self.maxima.float(), self.spec.largest, self.spec.groups)

    @torch.no_grad()
    def _observe(self, values: Tensor) -> None:
        found = values.abs().flatten(0, -2).amax(0)
        first = self.maxima.max() == 0
        self.maxima.copy_(torch.where(first, found, torch.lerp(self.maxima, found, self.spec.momentum)))


class _RoundedGradient(torch.autograd.Function):
    """The identity, whose gradient (..., O) is quantised by its own largest magnitudes, with stochastic rounding."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, spec: ShiftQuant) -> Tensor:
        ctx.spec = spec
        same: Tensor = outputs.view_as(outputs)
        return same

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), spec = gradients, ctx.spec
        steps = shift_scales(gradient.float().abs().flatten(0, -2).amax(0), spec.largest, spec.groups).steps
        codes = codes_of(gradient.float(), steps, spec.largest, torch.rand_like(gradient, dtype=torch.float32))
        return (codes * steps).to(gradient.dtype), None
