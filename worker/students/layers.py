"""What several architectures share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that also bears a batch with one value per channel.

    Such a batch (a last batch of one sample, shrunk to one pixel) has no variance; it is normalised by the running
    statistics, which it leaves as they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            return torch.batch_norm(
                input, self.weight, self.bias, self.running_mean, self.running_var, False, 0.0, self.eps, False
            )
        return super().forward(input)


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution without bias; halves each side (rounding up) when `stride` is 2."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def conv_norm(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution without bias, padded to keep the size, and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, BatchNorm2d(outputs)]


def init_residual(network: nn.Module) -> None:
    """He initialisation of all convolutions (1502.01852, fan-out as in the authors' networks), in place."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
