"""Multi-layer perceptron."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from app.recipe.students.architectures import Mlp
from app.recipe.students.model import ImageInput
from worker.students.heads import HEADS


def build(student: Mlp, image: ImageInput, classes: int) -> nn.Module:
    """Linear layers with ReLU between them on the flattened image (C, H, W)."""
    widths = [image.channels * image.height * image.width, *student.hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [_hidden(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, HEADS.build(student.head, widths[-1], classes))


def _hidden(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer
