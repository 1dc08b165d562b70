"""Convolutions and linear layers whose operands a quantiser rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.students.quantisation import Binary, QuantisationSpec
from worker.students.quantisers.base import QUANTISERS, Quantiser
from worker.students.quantisers.binary import ScaledRelu


class QuantisedConv2d(nn.Conv2d):
    """A convolution of quantised inputs with a quantised weight."""

    def __init__(self, layer: nn.Conv2d, quantiser: Quantiser) -> None:
        super().__init__(**_settings_of_conv(layer))
        self.weight, self.bias = layer.weight, layer.bias
        self.quantiser = quantiser

    def forward(self, input: Tensor) -> Tensor:
        return self.quantiser.multiply(self._conv_forward, input, self.weight, self.bias)

    def plain(self) -> nn.Conv2d:
        """The same layer without its quantiser."""
        layer = nn.Conv2d(**_settings_of_conv(self))
        layer.weight, layer.bias = self.weight, self.bias
        return layer


class QuantisedLinear(nn.Linear):
    """A linear layer of quantised inputs and a quantised weight."""

    def __init__(self, layer: nn.Linear, quantiser: Quantiser) -> None:
        super().__init__(**_settings_of_linear(layer))
        self.weight, self.bias = layer.weight, layer.bias
        self.quantiser = quantiser

    def forward(self, input: Tensor) -> Tensor:
        return self.quantiser.multiply(F.linear, input, self.weight, self.bias)

    def plain(self) -> nn.Linear:
        """The same layer without its quantiser."""
        layer = nn.Linear(**_settings_of_linear(self))
        layer.weight, layer.bias = self.weight, self.bias
        return layer


QuantisedLayer = QuantisedConv2d | QuantisedLinear


def quantised(network: nn.Module, spec: QuantisationSpec) -> nn.Module:
    """Give the convolutions and linear layers of `network` quantisers of the kind `spec`, in place. Module paths and
    weights stay as they are."""

    def swap(layer: nn.Module) -> nn.Module | None:
        if isinstance(layer, nn.Conv2d):
            return QuantisedConv2d(layer, _quantiser(spec, layer))
        return QuantisedLinear(layer, _quantiser(spec, layer)) if isinstance(layer, nn.Linear) else None

    if isinstance(spec, Binary):
        return with_binary_weights(network, spec)
    return replace_layers(network, swap)


def with_binary_weights(network: nn.Module, spec: Binary) -> nn.Module:
    """Remove the biases of a chain of linear layers, give all but the first and the last binary weights, and the ReLUs
    between them a scale of their activations, in place."""
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    for layer in linear:
        layer.register_parameter("bias", None)

    def swap(layer: nn.Module) -> nn.Module | None:
        if isinstance(layer, nn.ReLU):
            return ScaledRelu()
        return QuantisedLinear(layer, _quantiser(spec, layer)) if layer in linear[1:-1] else None

    return replace_layers(network, swap)


def without_quantisers(network: nn.Module) -> nn.Module:
    """A copy of `network` whose quantised layers are plain ones with the same weights."""
    return replace_layers(deepcopy(network), lambda layer: layer.plain() if isinstance(layer, QuantisedLayer) else None)


def replace_layers(network: nn.Module, swap: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Replace every module in `network` for which `swap` returns another one, in place."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if (found := swap(layer)) is not None:
                setattr(parent, name, found)
    return network


def quantised_layers(network: nn.Module) -> Iterator[tuple[str, QuantisedLayer]]:
    """Paths and layers of `network` that have a quantiser."""
    for path, layer in network.named_modules():
        if isinstance(layer, QuantisedLayer):
            yield path, layer


def _settings_of_conv(layer: nn.Conv2d) -> dict[str, Any]:
    """Arguments of a convolution of this size, without memory; its weights are not drawn at random."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return {name: getattr(layer, name) for name in names} | {"bias": layer.bias is not None, "device": "meta"}


def _settings_of_linear(layer: nn.Linear) -> dict[str, Any]:
    """The same for a linear layer."""
    names = ("in_features", "out_features")
    return {name: getattr(layer, name) for name in names} | {"bias": layer.bias is not None, "device": "meta"}


def _quantiser(spec: QuantisationSpec, layer: nn.Module) -> Quantiser:
    quantiser = QUANTISERS.build(spec, layer)
    assert isinstance(quantiser, Quantiser)
    return quantiser
