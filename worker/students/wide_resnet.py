"""Wide residual network (1605.07146): 6n + 4 layers, pre-activation blocks, 1x1 shortcuts where the width changes."""

from __future__ import annotations

from torch import Tensor, nn

from app.recipe.students.architectures import WideResNet
from app.recipe.students.model import ImageInput
from app.recipe.students.shapes import STAGES, WRN_BASE, basic_blocks
from worker.students.heads import HEADS
from worker.students.layers.convolutions import ImageLayers, init_residual


class PreActivationBlock(nn.Module):
    """Norm, activation, convolution, twice; the 1x1 shortcut starts after the first activation."""

    def __init__(self, layers: ImageLayers, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = layers.norm(inputs), layers.conv(inputs, outputs, stride=stride)
        self.norm2, self.conv2 = layers.norm(outputs), layers.conv(outputs, outputs)
        self.relu1, self.relu2 = layers.activation(), layers.activation()
        self.shortcut = None if inputs == outputs else layers.conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.norm1(x))
        identity = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(self.relu2(self.norm2(self.conv1(active))))
        return out + identity


class WideResNetNetwork(nn.Module):
    """Three stages of pre-activation blocks, a last norm, global average pooling, a head."""

    def __init__(self, student: WideResNet, channels: int, classes: int) -> None:
        super().__init__()
        layers, blocks = ImageLayers(student.norm, student.activation), basic_blocks(student)
        widths = [WRN_BASE * student.widen * 2**stage for stage in range(STAGES)]
        before = [WRN_BASE, *widths]
        self.conv = layers.conv(channels, WRN_BASE)
        self.stages = nn.Sequential(*(_stage(layers, before[i], widths[i], blocks, i > 0) for i in range(STAGES)))
        self.norm, self.relu = layers.norm(widths[-1]), layers.activation()
        self.head = HEADS.build(student.head, widths[-1], classes)
        init_residual(self)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm(self.stages(self.conv(x))))
        logits: Tensor = self.head(out.mean((2, 3)))
        return logits


def _stage(layers: ImageLayers, inputs: int, outputs: int, blocks: int, shrink: bool) -> nn.Sequential:
    first = PreActivationBlock(layers, inputs, outputs, 2 if shrink else 1)
    return nn.Sequential(first, *(PreActivationBlock(layers, outputs, outputs, 1) for _ in range(blocks - 1)))


def build(student: WideResNet, image: ImageInput, classes: int) -> nn.Module:
    """Any image size: each of the last two stages halves the sides, rounding up."""
    return WideResNetNetwork(student, image.channels, classes)
