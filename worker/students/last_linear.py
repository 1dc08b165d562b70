"""Finds the last linear layer of a network."""

from __future__ import annotations

from torch import nn


def last_linear(network: nn.Module, outputs: int) -> str | None:
    """Name of the last linear layer with so many outputs, if there is one."""
    fitting = [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == outputs
    ]
    body = getattr(network, "base_model_prefix", None)  # the library may list the head before the body
    outside = [name for name in fitting if body and not name.startswith(f"{body}.")]
    return (outside or fitting)[-1] if fitting else None
