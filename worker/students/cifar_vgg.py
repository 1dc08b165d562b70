"""VGG with norms (1409.1556) for small images: one linear classifier instead of three fully connected layers."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from app.recipe.students.architectures import CifarVgg
from app.recipe.students.model import ImageInput
from app.recipe.students.shapes import VGG_HALVINGS, vgg_stages
from worker.students.heads import HEADS
from worker.students.layers.convolutions import ImageLayers, init_residual


class CifarVggNetwork(nn.Module):
    """Stages of convolutions, global average pooling, a head; every stage ends in its activation."""

    def __init__(self, student: CifarVgg, channels: int, classes: int) -> None:
        super().__init__()
        layers, stages = ImageLayers(student.norm, student.activation), vgg_stages(student)
        before = [channels, *(widths[-1] for widths in stages)]
        channels_of = [[first, *widths] for first, widths in zip(before, stages, strict=False)]
        self.stages = nn.ModuleList(_stage(layers, widths) for widths in channels_of)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)  # one pixel is not reduced further
        self.head = HEADS.build(student.head, before[-1], classes)
        init_residual(self)

    def forward(self, x: Tensor) -> Tensor:
        for number, stage in enumerate(self.stages):
            x = stage(x)
            x = self.pool(x) if number < VGG_HALVINGS else x
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def _stage(layers: ImageLayers, widths: list[int]) -> nn.Sequential:
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        modules += [nn.Conv2d(inputs, outputs, 3, padding=1), layers.norm(outputs), layers.activation()]
    return nn.Sequential(*modules)


def build(student: CifarVgg, image: ImageInput, classes: int) -> nn.Module:
    """Any image size: the sides are halved three times, rounding up."""
    return CifarVggNetwork(student, image.channels, classes)
