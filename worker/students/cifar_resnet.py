"""ResNet for small images (1512.03385, section 4.2): 6n + 2 layers, shortcuts without parameters."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.students.architectures import CifarResNet
from app.recipe.students.model import ImageInput
from app.recipe.students.shapes import STAGES, basic_blocks
from worker.students.layers import BatchNorm2d, conv3x3, init_residual


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around an identity; where the size changes, it is strided and zero-padded (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int, padding: str = "end") -> None:
        super().__init__()
        extra = outputs - inputs
        before = extra // 2 if padding == "both" else 0
        self.stride, self.before, self.after = stride, before, extra - before
        self.conv1, self.norm1 = conv3x3(inputs, outputs, stride), BatchNorm2d(outputs)
        self.conv2, self.norm2 = conv3x3(outputs, outputs), BatchNorm2d(outputs)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.norm1(self.conv1(x)))
        active: Tensor = self.relu2(self.norm2(self.conv2(out)) + self._shortcut(x))
        return active

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and not self.after:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class CifarResNetNetwork(nn.Module):
    """Three stages of basic blocks, global average pooling, a linear classifier."""

    def __init__(self, channels: int, width: int, blocks: int, classes: int, padding: str) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = conv3x3(channels, width), BatchNorm2d(width), nn.ReLU()
        widths = [width * 2**stage for stage in range(STAGES)]
        before = [width, *widths]
        self.stages = nn.Sequential(*(_stage(before[i], widths[i], blocks, i > 0, padding) for i in range(STAGES)))
        self.head = nn.Linear(widths[-1], classes)
        init_residual(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.stages(self.relu(self.norm(self.conv(x))))
        logits: Tensor = self.head(out.mean((2, 3)))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, shrink: bool, padding: str) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, 2 if shrink else 1, padding)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def build(student: CifarResNet, image: ImageInput, classes: int) -> nn.Module:
    """Any image size: each of the last two stages halves the sides, rounding up."""
    return CifarResNetNetwork(image.channels, student.width, basic_blocks(student), classes, student.padding)
