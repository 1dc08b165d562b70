"""MobileNetV2 (1801.04381) for small images."""

from __future__ import annotations

from torch import Tensor, nn

from app.recipe.students.architectures import MobileNetV2
from app.recipe.students.model import ImageInput
from app.recipe.students.shapes import InvertedResidualShape as Shape
from app.recipe.students.shapes import mobilenet_shape
from worker.students.heads import HEADS
from worker.students.layers.convolutions import ImageLayers, init_residual


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection; beside an identity if input and output have one shape."""

    def __init__(self, layers: ImageLayers, shape: Shape) -> None:
        super().__init__()
        hidden = shape.hidden
        self.layers = nn.Sequential(
            *layers.conv_norm(shape.inputs, hidden),
            layers.activation(),
            *layers.conv_norm(hidden, hidden, 3, shape.stride, groups=hidden),
            layers.activation(),
            *layers.conv_norm(hidden, shape.outputs),
        )
        self.identity = shape.stride == 1 and shape.inputs == shape.outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return x + out if self.identity else out


class MobileNetV2Network(nn.Module):
    """A strided stem, seven stages of blocks, a 1x1 convolution, global average pooling, a head."""

    def __init__(self, student: MobileNetV2, channels: int, classes: int) -> None:
        super().__init__()
        layers, shape = ImageLayers(student.norm, student.activation), mobilenet_shape(student)
        first, last = shape.stages[0][0].inputs, shape.stages[-1][-1].outputs
        self.stem = nn.Sequential(*layers.conv_norm(channels, first, 3, 2), layers.activation())
        self.stages = nn.Sequential(*(_stage(layers, stage) for stage in shape.stages))
        self.last = nn.Sequential(*layers.conv_norm(last, shape.last), layers.activation())
        self.head = HEADS.build(student.head, shape.last, classes)
        init_residual(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.stages(self.stem(x)))
        logits: Tensor = self.head(out.mean((2, 3)))
        return logits


def _stage(layers: ImageLayers, blocks: list[Shape]) -> nn.Sequential:
    return nn.Sequential(*(InvertedResidual(layers, block) for block in blocks))


def build(student: MobileNetV2, image: ImageInput, classes: int) -> nn.Module:
    """Any image size: the sides are halved four times, rounding up."""
    return MobileNetV2Network(student, image.channels, classes)
