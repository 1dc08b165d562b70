"""What a student costs, from its description alone: parameters, arithmetic and memory, counted without building it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from app.recipe.students.architectures import (
    CifarResNet,
    CifarVgg,
    Mlp,
    MobileNetV2,
    Network,
    ShuffleNetV2,
    Timm,
    Transformers,
    Vit,
    WideResNet,
)
from app.recipe.students.inputs import ImageInput, Input, TableInput, TextInput
from app.recipe.students.shapes import (
    SHUFFLENET_BLOCKS,
    SHUFFLENET_STEM,
    STAGES,
    VGG_HALVINGS,
    WRN_BASE,
    basic_blocks,
    feed_forward_width,
    mobilenet_shape,
    shufflenet_widths,
    vgg_stages,
)
from app.recipe.students.shrink import ENCODERS, all_heads

LARGEST_GRAPH = 2**31 - 2**26
"""Bytes of weights that one ONNX file can hold."""


@dataclass(frozen=True)
class Cost:
    """Costs of one network."""

    parameters: int
    """Trainable weights."""
    flops: int
    """Floating-point operations of one sample's forward pass: two per multiply-add of a linear or convolutional layer
    or of attention; element-wise work is not counted."""
    activations: int
    """Elements kept for the backward pass per sample, roughly."""
    peak_activation: int
    """Elements of the largest layer's output per sample: what a forward pass alone needs, twice."""
    hidden_weights: int
    """Weights in the matrices of hidden layers, which some optimizers keep no state of."""


class _Tally:
    """Adds up layers as they come."""

    def __init__(self, image: ImageInput) -> None:
        self.parameters = self.flops = self.matrices = self.last_matrix = 0
        self.activations = self.peak = image.channels * image.height * image.width

    def layer(self, fan_in: int, outputs: int, positions: int = 1, *, bias: bool) -> None:
        """A linear map from `fan_in` inputs to `outputs` channels at each of `positions`; its output is kept."""
        self.parameters += outputs if bias else 0
        self.weights(fan_in, outputs, positions)
        self.keep(outputs * positions)

    def weights(self, fan_in: int, outputs: int, positions: int) -> None:
        """As `layer`, without a bias and of an output that is not kept."""
        self.parameters += fan_in * outputs
        self.flops += 2 * fan_in * outputs * positions
        self.last_matrix = fan_in * outputs if min(fan_in, outputs) > 1 else self.last_matrix
        self.matrices += fan_in * outputs if min(fan_in, outputs) > 1 else 0

    def conv_norm(self, fan_in: int, outputs: int, positions: int) -> None:
        """A convolution without bias and its batch norm, whose output is kept by what comes next, ReLU or not."""
        self.layer(fan_in, outputs, positions, bias=False)
        self.norm(outputs)
        self.keep(outputs * positions)

    def norm(self, channels: int) -> None:
        self.parameters += 2 * channels

    def keep(self, elements: int) -> None:
        self.activations += elements
        self.peak = max(self.peak, elements)

    def cost(self) -> Cost:
        return Cost(self.parameters, self.flops, self.activations, self.peak, self.matrices - self.last_matrix)


def student_cost(student: Network, sample: Input, outputs: int) -> Cost | None:
    """Count `student` on one sample; tables are for a `mlp` alone. None: only building it can tell (`transformers`,
    `timm`)."""
    if isinstance(student, Transformers | Timm):
        return None
    image = as_image(sample)
    tally = _Tally(image)
    _COUNTERS[type(student)](student, image, outputs, tally)
    return tally.cost()


def least_weights(network: Network, sample: Input | None, outputs: int) -> int:
    """At least so many weights has it, as far as its description tells: exactly, but for a network of the library.

    Of a decoder its large matrices are counted, and the embedding of its tokens where `sample` tells how many.
    """
    if isinstance(network, Transformers):
        try:
            return _matrices(network, sample) if network.decodes else 0
        except (TypeError, ValueError, ArithmeticError):  # sizes that are none are the library's to refuse
            return 0
    counted = None if sample is None else student_cost(network, sample, outputs)
    return counted.parameters if counted else 0


def _matrices(network: Transformers, sample: Input | None) -> int:
    encoder, heads = ENCODERS[network.model_type], all_heads(network)
    depth, width, _, hidden = encoder.sizes(network.config)
    attention = 2 * width * heads.size * (heads.of + heads.of_shared)
    tokens = sample.vocabulary if isinstance(sample, TextInput) else 0
    return depth * (attention + (3 if encoder.gated else 2) * width * hidden) + tokens * width


def known_costs(costs: Sequence[Cost | None]) -> list[Cost] | None:
    """All of them, or none when one is not known."""
    known = [cost for cost in costs if cost is not None]
    return known if len(known) == len(costs) else None


def as_image(sample: Input) -> ImageInput:
    """The input as the zoo sees it: a row of numbers is an image of one line."""
    if isinstance(sample, TextInput):
        raise ValueError("no network of the zoo takes texts")
    return ImageInput(channels=1, height=1, width=sample.columns) if isinstance(sample, TableInput) else sample


def _mlp(student: Mlp, image: ImageInput, classes: int, tally: _Tally) -> None:
    widths = [image.channels * image.height * image.width, *student.hidden, classes]
    for fan_in, outputs in pairwise(widths):
        tally.layer(fan_in, outputs, bias=True)


def _resnet(student: CifarResNet, image: ImageInput, classes: int, tally: _Tally) -> None:
    positions = image.height * image.width
    channels = student.width
    tally.conv_norm(9 * image.channels, channels, positions)
    for stage in range(STAGES):
        width, positions = student.width * 2**stage, _positions(image, stage)
        for fan_in in [channels] + [width] * (2 * basic_blocks(student) - 1):
            tally.conv_norm(9 * fan_in, width, positions)
        channels = width
    tally.keep(channels)
    tally.layer(channels, classes, bias=True)


def _wide_resnet(student: WideResNet, image: ImageInput, classes: int, tally: _Tally) -> None:
    channels = WRN_BASE
    tally.layer(9 * image.channels, channels, image.height * image.width, bias=False)
    for stage in range(STAGES):
        width = WRN_BASE * student.widen * 2**stage
        for block in range(basic_blocks(student)):
            before = _positions(image, stage if block else max(stage - 1, 0))
            _pre_activation_block(channels, width, before, _positions(image, stage), tally)
            channels = width
    tally.norm(channels)
    tally.keep(channels * _positions(image, STAGES - 1))
    tally.keep(channels)
    tally.layer(channels, classes, bias=True)


def _pre_activation_block(channels: int, width: int, before: int, after: int, tally: _Tally) -> None:
    tally.norm(channels)
    tally.keep(channels * before)
    tally.layer(9 * channels, width, after, bias=False)
    tally.norm(width)
    tally.keep(width * after)
    tally.layer(9 * width, width, after, bias=False)  # what is kept of it is the sum with the shortcut
    if channels != width:
        tally.weights(channels, width, after)


def _vgg(student: CifarVgg, image: ImageInput, classes: int, tally: _Tally) -> None:
    channels = image.channels
    for stage, widths in enumerate(vgg_stages(student)):
        positions = _positions(image, min(stage, VGG_HALVINGS))
        for width in widths:
            tally.conv_norm(9 * channels, width, positions)
            tally.parameters += width  # the convolution's bias
            channels = width
        if stage < VGG_HALVINGS:
            tally.keep(channels * _positions(image, stage + 1))
    tally.keep(channels)
    tally.layer(channels, classes, bias=True)


def _mobilenet_v2(student: MobileNetV2, image: ImageInput, classes: int, tally: _Tally) -> None:
    shape, halvings = mobilenet_shape(student), 1
    tally.conv_norm(9 * image.channels, shape.stages[0][0].inputs, _positions(image, halvings))
    for block in (block for stage in shape.stages for block in stage):
        tally.conv_norm(block.inputs, block.hidden, _positions(image, halvings))
        halvings += block.stride - 1
        tally.conv_norm(9, block.hidden, _positions(image, halvings))
        tally.conv_norm(block.hidden, block.outputs, _positions(image, halvings))
    tally.conv_norm(shape.stages[-1][-1].outputs, shape.last, _positions(image, halvings))
    tally.keep(shape.last)
    tally.layer(shape.last, classes, bias=True)


def _shufflenet_v2(student: ShuffleNetV2, image: ImageInput, classes: int, tally: _Tally) -> None:
    *widths, last = shufflenet_widths(student)
    channels = SHUFFLENET_STEM
    tally.conv_norm(image.channels, channels, _positions(image, 0))
    for stage, (width, units) in enumerate(zip(widths, SHUFFLENET_BLOCKS, strict=True)):
        before, after = _positions(image, stage), _positions(image, stage + 1)
        tally.conv_norm(9, channels, after)
        tally.conv_norm(channels, width // 2, after)
        _shuffle_branch(channels, width // 2, before, after, tally)
        for _ in range(units):
            tally.keep(width * after)  # both halves, interleaved
            _shuffle_branch(width // 2, width // 2, after, after, tally)
        channels = width
    tally.keep(channels * _positions(image, len(widths)))
    tally.conv_norm(channels, last, _positions(image, len(widths)))
    tally.keep(last)
    tally.layer(last, classes, bias=True)


def _shuffle_branch(channels: int, width: int, before: int, after: int, tally: _Tally) -> None:
    tally.conv_norm(channels, width, before)
    tally.conv_norm(9, width, after)
    tally.conv_norm(width, width, after)


def _vit(student: Vit, image: ImageInput, classes: int, tally: _Tally) -> None:
    patch, width = student.patch_size, student.width
    patches = (image.height // patch) * (image.width // patch)
    tokens = patches + 1
    tally.layer(image.channels * patch * patch, width, patches, bias=True)
    tally.parameters += width + tokens * width  # class token and positions
    for _ in range(student.depth):
        _transformer_block(width, feed_forward_width(student), tokens, tally)
    tally.norm(width)
    tally.keep(width)
    tally.layer(width, classes, bias=True)


def _transformer_block(width: int, hidden: int, tokens: int, tally: _Tally) -> None:
    tally.norm(width)
    tally.keep(width * tokens)
    tally.layer(width, 3 * width, tokens, bias=True)
    tally.flops += 4 * tokens * tokens * width
    tally.keep(width * tokens)
    tally.layer(width, width, tokens, bias=True)
    tally.norm(width)
    tally.keep(width * tokens)
    tally.layer(width, hidden, tokens, bias=True)
    tally.keep(hidden * tokens)
    tally.layer(hidden, width, tokens, bias=True)


def _positions(image: ImageInput, stage: int) -> int:
    shrink = 1 << stage
    return -(-image.height // shrink) * -(-image.width // shrink)


_Counter = Callable[[Any, ImageInput, int, _Tally], None]
_COUNTERS: dict[type, _Counter] = {
    Mlp: _mlp,
    CifarResNet: _resnet,
    WideResNet: _wide_resnet,
    CifarVgg: _vgg,
    MobileNetV2: _mobilenet_v2,
    ShuffleNetV2: _shufflenet_v2,
    Vit: _vit,
}
