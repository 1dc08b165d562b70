"""ShuffleNet V2 (1807.11164) for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.recipe.students.architectures import ShuffleNetV2
from app.recipe.students.model import ImageInput
from app.recipe.students.shapes import SHUFFLENET_BLOCKS, SHUFFLENET_STEM, shufflenet_widths
from worker.students.layers import conv_norm, init_residual


class Unit(nn.Module):
    """Half of the channels pass, the other half goes through `branch`; the halves are then interleaved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = _branch(width // 2, width // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        return _shuffle(kept, self.branch(changed))


class DownUnit(nn.Module):
    """Both halves see all channels and halve the sides, rounding up."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.shortcut = nn.Sequential(*conv_norm(inputs, inputs, 3, 2, inputs), *conv_norm(inputs, half), nn.ReLU())
        self.branch = _branch(inputs, half, 2)

    def forward(self, x: Tensor) -> Tensor:
        return _shuffle(self.shortcut(x), self.branch(x))


class ShuffleNetV2Network(nn.Module):
    """A 1x1 stem, three stages of units, a 1x1 convolution, global average pooling, a linear classifier."""

    def __init__(self, channels: int, widths: tuple[int, int, int, int], classes: int) -> None:
        super().__init__()
        *stages, last = widths
        before = [SHUFFLENET_STEM, *stages]
        self.stem = nn.Sequential(*conv_norm(channels, SHUFFLENET_STEM), nn.ReLU())
        self.stages = nn.Sequential(*(_stage(before[i], stages[i], n) for i, n in enumerate(SHUFFLENET_BLOCKS)))
        self.last = nn.Sequential(*conv_norm(before[-1], last), nn.ReLU())
        self.head = nn.Linear(last, classes)
        init_residual(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.stages(self.stem(x)))
        logits: Tensor = self.head(out.mean((2, 3)))
        return logits


def _branch(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *conv_norm(inputs, outputs),
        nn.ReLU(),
        *conv_norm(outputs, outputs, 3, stride, groups=outputs),
        *conv_norm(outputs, outputs),
        nn.ReLU(),
    )


def _shuffle(left: Tensor, right: Tensor) -> Tensor:
    return torch.stack((left, right), dim=2).flatten(1, 2)


def _stage(inputs: int, outputs: int, units: int) -> nn.Sequential:
    return nn.Sequential(DownUnit(inputs, outputs), *(Unit(outputs) for _ in range(units)))


def build(student: ShuffleNetV2, image: ImageInput, classes: int) -> nn.Module:
    """Any image size: each stage halves the sides, rounding up."""
    return ShuffleNetV2Network(image.channels, shufflenet_widths(student), classes)
