"""MobileNetV2 (1801.04381) for small images."""

from __future__ import annotations

from torch import Tensor, nn

from app.recipe.students.architectures import MobileNetV2
from app.recipe.students.model import ImageInput
from app.recipe.students.shapes import InvertedResidualShape as Shape
from app.recipe.students.shapes import MobileNetShape, mobilenet_shape
from worker.students.layers import conv_norm, init_residual


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection; beside an identity where input and output agree."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden = shape.hidden
        self.layers = nn.Sequential(
            *conv_norm(shape.inputs, hidden),
            nn.ReLU(),
            *conv_norm(hidden, hidden, 3, shape.stride, groups=hidden),
            nn.ReLU(),
            *conv_norm(hidden, shape.outputs),
        )
        self.identity = shape.stride == 1 and shape.inputs == shape.outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return x + out if self.identity else out


class MobileNetV2Network(nn.Module):
    """A strided stem, seven stages of blocks, a 1x1 convolution, global average pooling, a linear classifier."""

    def __init__(self, channels: int, shape: MobileNetShape, classes: int) -> None:
        super().__init__()
        first, last = shape.stages[0][0].inputs, shape.stages[-1][-1].outputs
        self.stem = nn.Sequential(*conv_norm(channels, first, 3, 2), nn.ReLU())
        self.stages = nn.Sequential(*(nn.Sequential(*map(InvertedResidual, stage)) for stage in shape.stages))
        self.last = nn.Sequential(*conv_norm(last, shape.last), nn.ReLU())
        self.head = nn.Linear(shape.last, classes)
        init_residual(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.stages(self.stem(x)))
        logits: Tensor = self.head(out.mean((2, 3)))
        return logits


def build(student: MobileNetV2, image: ImageInput, classes: int) -> nn.Module:
    """Any image size: the sides are halved four times, rounding up."""
    return MobileNetV2Network(image.channels, mobilenet_shape(student), classes)
