"""ResNet for small images (1512.03385, section 4.2): 6n + 2 layers, shortcuts without parameters."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.students.architectures import CifarResNet
from app.recipe.students.model import ImageInput
from app.recipe.students.shapes import STAGES, basic_blocks
from worker.students.heads import HEADS
from worker.students.layers.convolutions import ImageLayers, init_residual


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside an identity, which is strided and zero-padded if the size changes (option A)."""

    def __init__(self, layers: ImageLayers, inputs: int, outputs: int, stride: int, padding: str = "end") -> None:
        super().__init__()
        extra = outputs - inputs
        before = extra // 2 if padding == "both" else 0
        self.stride, self.before, self.after = stride, before, extra - before
        self.conv1, self.norm1 = layers.conv(inputs, outputs, stride=stride), layers.norm(outputs)
        self.conv2, self.norm2 = layers.conv(outputs, outputs), layers.norm(outputs)
        self.relu1, self.relu2 = layers.activation(), layers.activation()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.norm1(self.conv1(x)))
        active: Tensor = self.relu2(self.norm2(self.conv2(out)) + self._shortcut(x))
        return active

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and not self.after:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class CifarResNetNetwork(nn.Module):
    """Three stages of basic blocks, global average pooling, a head."""

    def __init__(self, student: CifarResNet, channels: int, classes: int) -> None:
        super().__init__()
        layers, width = ImageLayers(student.norm, student.activation), student.width
        self.conv, self.norm, self.relu = layers.conv(channels, width), layers.norm(width), layers.activation()
        widths = [width * 2**stage for stage in range(STAGES)]
        before = [width, *widths]
        self.stages = nn.Sequential(*(_stage(student, layers, before[i], widths[i]) for i in range(STAGES)))
        self.head = HEADS.build(student.head, widths[-1], classes)
        init_residual(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.stages(self.relu(self.norm(self.conv(x))))
        logits: Tensor = self.head(out.mean((2, 3)))
        return logits


def _stage(student: CifarResNet, layers: ImageLayers, inputs: int, outputs: int) -> nn.Sequential:
    first = BasicBlock(layers, inputs, outputs, outputs // inputs, student.padding)
    return nn.Sequential(first, *(BasicBlock(layers, outputs, outputs, 1) for _ in range(basic_blocks(student) - 1)))


def build(student: CifarResNet, image: ImageInput, classes: int) -> nn.Module:
    """Any image size: each of the last two stages halves the sides, rounding up."""
    return CifarResNetNetwork(student, image.channels, classes)
