"""Binary weights with latent updates (2002.10064, which trains as XNOR-Net, 1603.05279).

With W the latent weights, centred over the inputs and clipped to [-1, 1], of n inputs:

    a_o = mean |W_o|;  B_o = a_o sign(W_o), sign(0) = 1
    dL/dW = a [|W| <= 1] dL/dB + sign(W) (1/n) sum(sign(W) dL/dB)       both sums over the inputs of an output unit
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from app.recipe.students.quantisation import Binary
from worker.students.quantisers.base import QUANTISERS, Quantiser, straight_through


def centred(weight: Tensor) -> Tensor:
    """A latent weight (O, I, ...) without its mean over the inputs of axis 1, clipped to [-1, 1]."""
    return (weight - weight.mean(1, keepdim=True)).clamp(-1, 1)


def signs_of(latent: Tensor) -> Tensor:
    """1 where `latent`, of any shape, is 0 or more, else -1."""
    return torch.where(latent >= 0, 1.0, -1.0).to(latent.dtype)


def binary_weight(latent: Tensor) -> Tensor:
    """Signs of a centred weight (O, ...) times their mean magnitude in each output unit, with the gradient above."""
    magnitude = latent.abs().flatten(1).mean(1).view(-1, *[1] * (latent.ndim - 1))
    return magnitude * straight_through(latent.clamp(-1, 1), signs_of(latent))


@QUANTISERS.register(Binary)
class Binariser(Quantiser):
    """Binary weights and floating inputs. In training mode the latent weight itself is centred and clipped first."""

    def __init__(self, spec: Binary, layer: nn.Module) -> None:
        super().__init__()

    def forward(self, inputs: Tensor) -> Tensor:
        """The inputs (..., D) as they are."""
        return inputs

    def weight(self, weight: Tensor) -> Tensor:
        """See `Quantiser.weight`."""
        if not self.training:
            return binary_weight(centred(weight))
        with torch.no_grad():
            weight.copy_(centred(weight))
        return binary_weight(weight)


class ScaledRelu(nn.ReLU):
    """max(x, 0), with the activation that a spiking neuron in its place spikes for in every step."""

    factor: Tensor
    """That activation, a scalar float32; 0 until it was computed, after training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.zeros(()))


@torch.no_grad()
def fit_factors(network: nn.Module, inputs: Tensor, percentile: float) -> None:
    """Set the factor of every `ScaledRelu` to the percentile, from 0 to 100, of its activations for `inputs` (N, ...)
    of `network`; to the largest activation if that is 0, and to 1 if all are."""
    found: dict[ScaledRelu, Tensor] = {}

    def record(layer: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(layer, ScaledRelu)
        found[layer] = output

    layers = [layer for layer in network.modules() if isinstance(layer, ScaledRelu)]
    handles = [layer.register_forward_hook(record) for layer in layers]
    network(inputs)
    for handle in handles:
        handle.remove()
    for layer, activations in found.items():
        values = activations.double().cpu().numpy()
        layer.factor.fill_(float(np.percentile(values, percentile)) or float(values.max()) or 1.0)
