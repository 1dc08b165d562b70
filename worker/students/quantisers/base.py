"""Quantisers of a layer, and the straight-through estimator."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from worker.students.layers.registry import LayerRegistry


class Quantiser(nn.Module, ABC):
    """Quantises the operands of one layer; its call quantises the inputs."""

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Quantised inputs, of the shape and dtype of `inputs`: (N, C, H, W) or (..., D)."""

    @abstractmethod
    def weight(self, weight: Tensor) -> Tensor:
        """The quantised weight, of the shape and dtype of `weight`: (O, ...)."""

    def outputs(self, outputs: Tensor) -> Tensor:
        """The layer's outputs, of any shape; a quantiser of gradients hooks in here."""
        return outputs


QUANTISERS = LayerRegistry[[nn.Module]]()
"""Built for a layer: a convolution or a linear one."""


def straight_through(within: Tensor, quantised: Tensor) -> Tensor:
    """Exactly `quantised`, of any shape, with the gradient of `within`, which has the same shape and is finite."""
    return within - within.detach() + quantised.detach()
