"""Multi-layer perceptron."""

from __future__ import annotations

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.students.architectures import Mlp
from app.recipe.students.layers import ActivationSpec, OptimalHermite
from app.recipe.students.model import ImageInput
from worker.students.heads import HEADS
from worker.students.layers.activations import ACTIVATIONS
from worker.tensors import at_least_float32


class FlattenToSphere(nn.Module):
    """Samples (N, ...), floating, as vectors (N, D) of length sqrt(D), in at least float32: with weights from
    N(0, 1 / D) the same as unit vectors with weights from N(0, 1)."""

    def forward(self, samples: Tensor) -> Tensor:
        vectors = at_least_float32(samples.flatten(1))
        return F.normalize(vectors, dim=1) * math.sqrt(vectors.shape[1])


def build(student: Mlp, image: ImageInput, classes: int) -> nn.Module:
    """Linear layers with activations between them on the flattened image (C, H, W)."""
    widths = [image.channels * image.height * image.width, *student.hidden]
    layers: list[nn.Module] = [FlattenToSphere() if isinstance(student.activation, OptimalHermite) else nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [_hidden(inputs, outputs, student.activation), ACTIVATIONS.build(student.activation)]
    return nn.Sequential(*layers, HEADS.build(student.head, widths[-1], classes))


def _hidden(inputs: int, outputs: int, activation: ActivationSpec) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if activation.replaces_norms else "relu")
    nn.init.zeros_(layer.bias)
    return layer
