"""Parts of convolutional architectures: convolutions with the norms and activations that a job chooses."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from app.recipe.students.layers import ActivationSpec, NormSpec
from worker.students.layers.activations import ACTIVATIONS
from worker.students.layers.norms import IMAGE_NORMS


class ImageLayers(NamedTuple):
    """Kinds of layers of a convolutional network on images (N, C, H, W), and their builders."""

    norm_kind: NormSpec
    activation_kind: ActivationSpec

    def norm(self, channels: int) -> nn.Module:
        """A norm; an identity if the kind is none, so that module paths do not change."""
        return IMAGE_NORMS.build(self.norm_kind, channels)

    def activation(self) -> nn.Module:
        """An activation."""
        return ACTIVATIONS.build(self.activation_kind)

    def conv(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
        """A convolution padded to keep the size, which a `stride` of 2 halves (rounding up). It has a bias, initially
        0, if the norms have none."""
        bias = self.norm_kind.needs_bias
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        return conv

    def conv_norm(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> list[nn.Module]:
        """A convolution and its norm."""
        return [self.conv(inputs, outputs, kernel, stride, groups), self.norm(outputs)]


def init_residual(network: nn.Module) -> None:
    """He initialisation of all convolutions (1502.01852, fan-out as in the authors' networks), in place."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
