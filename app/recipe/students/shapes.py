"""Proportions of built-in networks, for building them and for counting their costs."""

from __future__ import annotations

from typing import NamedTuple

from app.recipe.students.architectures import (
    CifarResNet,
    CifarVgg,
    MobileNetV2,
    ShuffleNetV2,
    TextTransformer,
    Vit,
    WideResNet,
)
from app.recipe.students.inputs import ImageInput
from app.recipe.students.layers import AttentionShape

STAGES = 3
"""Stages of both residual architectures."""
WRN_BASE = 16
"""Channels of a wide residual network before it is widened."""
VGG_HALVINGS = 3
"""Stages with a max-pooling after them, of five."""
_VGG_WIDTHS = (1, 2, 4, 8, 8)
_VGG_LAYERS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_MOBILENET_STEM, _MOBILENET_LAST = 32, 1280
_MOBILENET_STAGES = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
"""Width, blocks and first stride of each stage."""
SHUFFLENET_STEM = 24
"""Channels before the first stage."""
SHUFFLENET_BLOCKS = (3, 7, 3)
"""Units of each stage after the one that halves the sides."""
_SHUFFLENET_WIDTHS = {
    "0.5x": (48, 96, 192, 1024),
    "1x": (116, 232, 464, 1024),
    "1.5x": (176, 352, 704, 1024),
    "2x": (244, 488, 976, 2048),
}


def basic_blocks(student: CifarResNet | WideResNet) -> int:
    """Residual blocks in each of the three stages: depth is 6n + 2, or 6n + 4 with its 1x1 shortcuts."""
    return (student.depth - (2 if isinstance(student, CifarResNet) else 4)) // 6


def attention_width(student: Vit) -> int:
    """Numbers of the queries of all heads together, and of the keys, and of the values."""
    return student.heads * (student.head_size or student.width // student.heads)


def feed_forward_width(student: Vit | TextTransformer) -> int:
    """Units of the hidden layer of a transformer block's feed-forward part."""
    return max(1, round(student.width * student.mlp_ratio))


def vit_attention(student: Vit, image: ImageInput) -> AttentionShape:
    """Sizes of the attention in a vision transformer, whose first token is that of the class."""
    rows, columns = image.height // student.patch_size, image.width // student.patch_size
    return AttentionShape(rows * columns + 1, attention_width(student), student.heads, (rows, columns))


def text_attention(student: TextTransformer, length: int) -> AttentionShape:
    """Sizes of the attention in a transformer over texts of at most `length` tokens."""
    return AttentionShape(length, student.width, student.heads)


def vgg_stages(student: CifarVgg) -> list[list[int]]:
    """Channels of each convolution of the five stages."""
    layers = _VGG_LAYERS[student.depth]
    return [[student.width * factor] * count for factor, count in zip(_VGG_WIDTHS, layers, strict=True)]


class InvertedResidualShape(NamedTuple):
    """Input, hidden and output channels of one block, and its stride."""

    inputs: int
    hidden: int
    outputs: int
    stride: int


class MobileNetShape(NamedTuple):
    """Blocks of each stage, and the channels of the last convolution."""

    stages: list[list[InvertedResidualShape]]
    last: int


def mobilenet_shape(student: MobileNetV2) -> MobileNetShape:
    """Shape of the network; the last convolution grows with the multiplier, but does not shrink."""
    inputs = max(1, int(_MOBILENET_STEM * student.multiplier))
    stages: list[list[InvertedResidualShape]] = []
    for number, (width, blocks, stride) in enumerate(_MOBILENET_STAGES):
        outputs, stage = max(1, int(width * student.multiplier)), []
        for block in range(blocks):
            hidden = inputs * (student.expansion if number else 1)
            stage.append(InvertedResidualShape(inputs, hidden, outputs, 1 if block else stride))
            inputs = outputs
        stages.append(stage)
    return MobileNetShape(stages, int(_MOBILENET_LAST * max(1.0, student.multiplier)))


def shufflenet_widths(student: ShuffleNetV2) -> tuple[int, int, int, int]:
    """Channels of the three stages and of the last convolution."""
    return _SHUFFLENET_WIDTHS[student.size]
