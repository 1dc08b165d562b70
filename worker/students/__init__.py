"""The student zoo: one module per architecture of the contract, each deterministic from torch's seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from app.recipe.cost import as_image
from app.recipe.model import ImageInput, Input
from app.recipe.students import CifarResNet, Mlp, Student, Vit, WideResNet
from worker.students import cifar_resnet, mlp, vit, wide_resnet

Builder = Callable[[Any, ImageInput, int], nn.Module]
BUILDERS: dict[type, Builder] = {
    Mlp: mlp.build,
    CifarResNet: cifar_resnet.build,
    WideResNet: wide_resnet.build,
    Vit: vit.build,
}


def build(student: Student, sample: Input, outputs: int) -> nn.Module:
    """A freshly initialised network from preprocessed samples (N, ...) to logits or numbers (N, outputs)."""
    return BUILDERS[type(student)](student, as_image(sample), outputs)
