"""ShuffleNet V2 (1807.11164) for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.recipe.students.architectures import ShuffleNetV2
from app.recipe.students.model import ImageInput
from app.recipe.students.shapes import SHUFFLENET_BLOCKS, SHUFFLENET_STEM, shufflenet_widths
from worker.students.heads import HEADS
from worker.students.layers.convolutions import ImageLayers, init_residual


class Unit(nn.Module):
    """Half of the channels are passed on, the second half goes through `branch`; the halves are then interleaved."""

    def __init__(self, layers: ImageLayers, width: int) -> None:
        super().__init__()
        self.branch = _branch(layers, width // 2, width // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        return _shuffle(kept, self.branch(changed))


class DownUnit(nn.Module):
    """Both halves are computed from all channels, with halved sides, rounding up."""

    def __init__(self, layers: ImageLayers, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        down = layers.conv_norm(inputs, inputs, 3, 2, inputs)
        self.shortcut = nn.Sequential(*down, *layers.conv_norm(inputs, half), layers.activation())
        self.branch = _branch(layers, inputs, half, 2)

    def forward(self, x: Tensor) -> Tensor:
        return _shuffle(self.shortcut(x), self.branch(x))


class ShuffleNetV2Network(nn.Module):
    """A 1x1 stem, three stages of units, a 1x1 convolution, global average pooling, a head."""

    def __init__(self, student: ShuffleNetV2, channels: int, classes: int) -> None:
        super().__init__()
        layers = ImageLayers(student.norm, student.activation)
        *stages, last = shufflenet_widths(student)
        before = [SHUFFLENET_STEM, *stages]
        self.stem = nn.Sequential(*layers.conv_norm(channels, SHUFFLENET_STEM), layers.activation())
        self.stages = nn.Sequential(*(_stage(layers, before[i], stages[i], n) for i, n in enumerate(SHUFFLENET_BLOCKS)))
        self.last = nn.Sequential(*layers.conv_norm(before[-1], last), layers.activation())
        self.head = HEADS.build(student.head, last, classes)
        init_residual(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.stages(self.stem(x)))
        logits: Tensor = self.head(out.mean((2, 3)))
        return logits


def _branch(layers: ImageLayers, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *layers.conv_norm(inputs, outputs),
        layers.activation(),
        *layers.conv_norm(outputs, outputs, 3, stride, groups=outputs),
        *layers.conv_norm(outputs, outputs),
        layers.activation(),
    )


def _shuffle(left: Tensor, right: Tensor) -> Tensor:
    return torch.stack((left, right), dim=2).flatten(1, 2)


def _stage(layers: ImageLayers, inputs: int, outputs: int, units: int) -> nn.Sequential:
    return nn.Sequential(DownUnit(layers, inputs, outputs), *(Unit(layers, outputs) for _ in range(units)))


def build(student: ShuffleNetV2, image: ImageInput, classes: int) -> nn.Module:
    """Any image size: each stage halves the sides, rounding up."""
    return ShuffleNetV2Network(student, image.channels, classes)
