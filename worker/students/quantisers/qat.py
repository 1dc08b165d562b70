"""Quantisation-aware training for 8-bit integers (1712.05877)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.recipe.students.quantisation import Qat
from worker.students.quantisers.base import QUANTISERS, Quantiser, straight_through

LEVELS = 255
"""Steps of a range: activations are codes 0 to 255."""
LARGEST = 127
"""Codes of weights are -127 to 127, stored from 1 to 255 around 128."""
OFFSET = 128
LEAST_SCALE = 1e-12
"""So that a channel, or a tensor, of zeros stays one."""


@QUANTISERS.register(Qat)
class EightBits(Quantiser):
    """8-bit codes: of inputs over an observed range per tensor that includes 0, of weights over a symmetric one per
    output channel.

    With r = [l, h] the range, s = (h - l) / 255 and z = round(-l / s), an input x becomes
    s (clip(round(x / s) + z, 0, 255) - z) (1712.05877, equations 1 and 12); a weight w of a channel with the largest
    magnitude m becomes round(w / t) t, t = m / 127. Rounding is to the nearest, halves to even, as ONNX has it.
    """

    low: Tensor
    """Running least input, a scalar float32; both are 0 before the first batch."""
    high: Tensor
    """Running largest input, a scalar float32."""

    def __init__(self, spec: Qat, layer: nn.Module) -> None:
        super().__init__()
        self.momentum = spec.momentum
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        """See `Quantiser.forward`; in training mode the range is updated first."""
        values = inputs.float()
        if self.training:
            self._observe(values.detach())
        scale, zero = self.input_codes()
        codes = (torch.round(values.detach() / scale) + zero).clamp(0, LEVELS)
        within = torch.minimum(torch.maximum(values, -zero * scale), (LEVELS - zero) * scale)
        return straight_through(within, (codes - zero) * scale).to(inputs.dtype)

    def weight(self, weight: Tensor) -> Tensor:
        """See `Quantiser.weight`."""
        codes, scale = weight_codes(weight.detach())
        return straight_through(weight, (codes * scale).to(weight.dtype))

    def input_codes(self) -> tuple[Tensor, Tensor]:
        """Scale, and code of zero, a whole number: scalars float32."""
        low, high = self.low.float().clamp(max=0), self.high.float().clamp(min=0)
        scale = ((high - low) / LEVELS).clamp(min=LEAST_SCALE)
        return scale, torch.round(-low / scale)

    @torch.no_grad()
    def _observe(self, values: Tensor) -> None:
        first = self.low == self.high
        for bound, found in ((self.low, values.amin()), (self.high, values.amax())):
            bound.copy_(torch.where(first, found, torch.lerp(bound, found, self.momentum)))


def weight_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of a weight (O, ...), whole numbers from -127 to 127, and scales (O, 1, ...), all float32."""
    values = weight.float()
    scale = (values.abs().flatten(1).amax(1) / LARGEST).clamp(min=LEAST_SCALE).view(-1, *[1] * (weight.ndim - 1))
    return torch.round(values / scale), scale
