"""Wide residual network (1605.07146): 6n + 4 layers, pre-activation blocks, 1x1 shortcuts where the width changes."""

from __future__ import annotations

from torch import Tensor, nn

from app.recipe.students.architectures import WideResNet
from app.recipe.students.model import ImageInput
from app.recipe.students.shapes import STAGES, WRN_BASE, basic_blocks
from worker.students.layers import BatchNorm2d, conv3x3, init_residual


class PreActivationBlock(nn.Module):
    """Norm, ReLU, convolution, twice; the 1x1 shortcut starts after the first ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = BatchNorm2d(inputs), conv3x3(inputs, outputs, stride)
        self.norm2, self.conv2 = BatchNorm2d(outputs), conv3x3(outputs, outputs)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.norm1(x))
        identity = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(self.relu2(self.norm2(self.conv1(active))))
        return out + identity


class WideResNetNetwork(nn.Module):
    """Three stages of pre-activation blocks, a last norm, global average pooling, a linear classifier."""

    def __init__(self, channels: int, widen: int, blocks: int, classes: int) -> None:
        super().__init__()
        widths = [WRN_BASE * widen * 2**stage for stage in range(STAGES)]
        before = [WRN_BASE, *widths]
        self.conv = conv3x3(channels, WRN_BASE)
        self.stages = nn.Sequential(*(_stage(before[i], widths[i], blocks, i > 0) for i in range(STAGES)))
        self.norm, self.relu = BatchNorm2d(widths[-1]), nn.ReLU()
        self.head = nn.Linear(widths[-1], classes)
        init_residual(self)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm(self.stages(self.conv(x))))
        logits: Tensor = self.head(out.mean((2, 3)))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, shrink: bool) -> nn.Sequential:
    first = PreActivationBlock(inputs, outputs, 2 if shrink else 1)
    return nn.Sequential(first, *(PreActivationBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def build(student: WideResNet, image: ImageInput, classes: int) -> nn.Module:
    """Any image size: each of the last two stages halves the sides, rounding up."""
    return WideResNetNetwork(image.channels, student.widen, basic_blocks(student), classes)
