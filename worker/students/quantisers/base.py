"""Quantisers of a layer, and the straight-through estimator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from worker.students.layers.registry import LayerRegistry

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A convolution or linear map: of inputs, weight and bias."""


class Quantiser(nn.Module, ABC):
    """Quantises the operands of one layer; its call quantises the inputs."""

    first_order_only = True
    """Whether the gradient of its gradient is not the second derivative of its outputs."""

    def multiply(self, product: Product, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Outputs of the layer, `product` of the quantised operands."""
        return product(self(inputs), self.weight(weight), bias)

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Quantised inputs, of the shape and dtype of `inputs`: (N, C, H, W) or (..., D)."""

    @abstractmethod
    def weight(self, weight: Tensor) -> Tensor:
        """The quantised weight, of the shape and dtype of `weight`: (O, ...)."""


QUANTISERS = LayerRegistry[[nn.Module]]()
"""Built for a layer: a convolution or a linear one."""


def straight_through(within: Tensor, quantised: Tensor) -> Tensor:
    """Exactly `quantised`, of any shape, with the gradient of `within`, which has the same shape and is finite."""
    return within - within.detach() + quantised.detach()
