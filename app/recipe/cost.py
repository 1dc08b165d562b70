"""Costs of a student from its description alone: parameters, arithmetic and memory, counted without building it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from app.recipe.students.architectures import (
    BuiltIn,
    CifarResNet,
    CifarVgg,
    DualEncoder,
    InpFormerNetwork,
    Mlp,
    MobileNetV2,
    Network,
    ShuffleNetV2,
    TextTransformer,
    Timm,
    Transformers,
    Vit,
    WideResNet,
)
from app.recipe.students.inputs import ImageInput, Input, TableInput, TextInput
from app.recipe.students.layers import AttentionShape
from app.recipe.students.reconstruction import FeatureShape, feature_shape
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
    text_attention,
    vgg_stages,
    vit_attention,
)
from app.recipe.students.shrink import ENCODERS, all_heads
from app.recipe.tally import Cost, ImageNetwork, Tally

LARGEST_GRAPH = 2**31 - 2**26
"""Most bytes of weights in one ONNX file."""


QUANTISED_COPIES = 2
"""Bound of what a quantised network keeps for the backward pass, as a multiple of what it keeps otherwise: the inputs
of a layer are kept as they are and rounded."""


def beside(frozen: Cost, trained: Cost) -> Cost:
    """Costs of a network with a part that is not trained, and keeps nothing for the backward pass."""
    return Cost(
        parameters=frozen.parameters + trained.parameters,
        flops=frozen.flops + trained.flops,
        activations=trained.activations,
        peak_activation=max(frozen.peak_activation, trained.peak_activation),
        hidden_weights=trained.hidden_weights,
        frozen_parameters=frozen.parameters,
        frozen_flops=frozen.flops,
    )


def student_cost(student: Network, sample: Input, outputs: int) -> Cost | None:
    """Count the costs of `student` on one sample; tables are for a `mlp` alone. None: they are only known after
    building it (`transformers`, `timm`, `dual-encoder`)."""
    if isinstance(student, InpFormerNetwork):
        encoder, image = student.encoder, as_image(sample)
        frozen, shape = student_cost(encoder, image, student.encoder_outputs), feature_shape(student, image)
        return None if frozen is None or shape is None else reconstruction_cost(student, frozen, shape, image)
    tally = _count(student, sample, outputs)
    if tally is None:
        return None
    quantised = isinstance(student, BuiltIn) and student.quantise is not None
    cost = tally.cost()
    return replace(cost, activations=QUANTISED_COPIES * cost.activations) if quantised else cost


def normalised_channels(network: Network) -> set[int]:
    """Channels of the layers that a built-in network normalises; empty for others."""
    if isinstance(network, TextTransformer):
        return {network.width}
    tally = _count(network, ImageInput(channels=1, height=1, width=1), 1)
    return tally.normalised if tally else set()


def _count(student: Network, sample: Input, outputs: int) -> Tally | None:
    if isinstance(student, Transformers | Timm | DualEncoder | InpFormerNetwork):
        return None
    tally = Tally(sample)
    if isinstance(student, TextTransformer):
        _text_transformer(student, sample, outputs, tally)
    else:
        _COUNTERS[type(student)](student, as_image(sample), outputs, tally)
    return tally


def least_weights(network: Network, sample: Input | None, outputs: int) -> int:
    """A lower bound of its weights from its description; exact, except for a network of the Transformers library.

    For a decoder its large matrices are counted, and the embedding of its tokens if `sample` has their number.
    """
    if isinstance(network, Transformers):
        try:
            return _matrices(network, sample) if network.decodes else 0
        except (TypeError, ValueError, ArithmeticError):  # invalid sizes are refused by the library
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
    """All costs, or none if one is unknown."""
    known = [cost for cost in costs if cost is not None]
    return known if len(known) == len(costs) else None


def as_image(sample: Input) -> ImageInput:
    """The input of a built-in network: a row of numbers is an image of one line."""
    if isinstance(sample, TextInput):
        raise ValueError("no network of the zoo takes texts")
    return ImageInput(channels=1, height=1, width=sample.columns) if isinstance(sample, TableInput) else sample


def _mlp(student: Mlp, image: ImageInput, classes: int, tally: Tally) -> None:
    widths = [image.channels * image.height * image.width, *student.hidden]
    bias = student.quantise is None or student.quantise.has_bias
    for fan_in, outputs in pairwise(widths):
        tally.matrix(fan_in, outputs, bias=bias)
        tally.activation(student.activation, outputs)
    tally.last_layer(student.head, widths[-1], classes)
    tally.parameters -= 0 if bias else classes


def _resnet(student: CifarResNet, image: ImageInput, classes: int, tally: Tally) -> None:
    positions = image.height * image.width
    channels = student.width
    tally.conv_norm(student, 9 * image.channels, channels, positions)
    for stage in range(STAGES):
        width, positions = student.width * 2**stage, _positions(image, stage)
        for fan_in in [channels] + [width] * (2 * basic_blocks(student) - 1):
            tally.conv_norm(student, 9 * fan_in, width, positions)
        channels = width
    tally.head(student.head, channels, classes)


def _wide_resnet(student: WideResNet, image: ImageInput, classes: int, tally: Tally) -> None:
    channels, bias = WRN_BASE, student.norm.needs_bias
    tally.matrix(9 * image.channels, channels, image.height * image.width, bias=bias)
    for stage in range(STAGES):
        width, after = WRN_BASE * student.widen * 2**stage, _positions(image, stage)
        for block in range(basic_blocks(student)):
            before = _positions(image, stage if block else max(stage - 1, 0))
            _pre_activation(student, channels, before, tally)
            tally.matrix(9 * channels, width, after, bias=bias)
            _pre_activation(student, width, after, tally)
            tally.matrix(9 * width, width, after, bias=bias)
            if channels != width:
                tally.matrix(channels, width, after, bias=bias)
            channels = width
    _pre_activation(student, channels, _positions(image, STAGES - 1), tally)
    tally.head(student.head, channels, classes)


def _pre_activation(layers: ImageNetwork, channels: int, positions: int, tally: Tally) -> None:
    tally.norm(layers.norm, channels, positions)
    tally.activation(layers.activation, channels * positions)


def _vgg(student: CifarVgg, image: ImageInput, classes: int, tally: Tally) -> None:
    channels = image.channels
    for stage, widths in enumerate(vgg_stages(student)):
        positions = _positions(image, min(stage, VGG_HALVINGS))
        for width in widths:
            tally.matrix(9 * channels, width, positions, bias=True)
            _pre_activation(student, width, positions, tally)
            channels = width
        if stage < VGG_HALVINGS:
            tally.keep(channels * _positions(image, stage + 1))
    tally.head(student.head, channels, classes)


def _mobilenet_v2(student: MobileNetV2, image: ImageInput, classes: int, tally: Tally) -> None:
    shape, halvings = mobilenet_shape(student), 1
    tally.conv_norm(student, 9 * image.channels, shape.stages[0][0].inputs, _positions(image, halvings))
    for block in (block for stage in shape.stages for block in stage):
        tally.conv_norm(student, block.inputs, block.hidden, _positions(image, halvings))
        halvings += block.stride - 1
        tally.conv_norm(student, 9, block.hidden, _positions(image, halvings))
        tally.conv_norm(student, block.hidden, block.outputs, _positions(image, halvings), linear=True)
    tally.conv_norm(student, shape.stages[-1][-1].outputs, shape.last, _positions(image, halvings))
    tally.head(student.head, shape.last, classes)


def _shufflenet_v2(student: ShuffleNetV2, image: ImageInput, classes: int, tally: Tally) -> None:
    *widths, last = shufflenet_widths(student)
    channels = SHUFFLENET_STEM
    tally.conv_norm(student, image.channels, channels, _positions(image, 0))
    for stage, (width, units) in enumerate(zip(widths, SHUFFLENET_BLOCKS, strict=True)):
        before, after = _positions(image, stage), _positions(image, stage + 1)
        tally.conv_norm(student, 9, channels, after, linear=True)
        tally.conv_norm(student, channels, width // 2, after)
        _shuffle_branch(student, channels, width // 2, before, after, tally)
        for _ in range(units):
            tally.keep(width * after)  # both halves, interleaved
            _shuffle_branch(student, width // 2, width // 2, after, after, tally)
        channels = width
    tally.keep(channels * _positions(image, len(widths)))
    tally.conv_norm(student, channels, last, _positions(image, len(widths)))
    tally.head(student.head, last, classes)


def _shuffle_branch(layers: ImageNetwork, channels: int, width: int, before: int, after: int, tally: Tally) -> None:
    tally.conv_norm(layers, channels, width, before)
    tally.conv_norm(layers, 9, width, after, linear=True)
    tally.conv_norm(layers, width, width, after)


def _vit(student: Vit, image: ImageInput, classes: int, tally: Tally) -> None:
    patch, width, shape = student.patch_size, student.width, vit_attention(student, image)
    tokens = shape.tokens
    tally.matrix(image.channels * patch * patch, width, shape.positions, bias=True)
    tally.parameters += width + tokens * width  # class token and positions
    for _ in range(student.depth):
        _transformer_block(student, shape, tally)
    tally.keep(width * tokens)
    tally.norm(student.norm, width, 1)
    tally.head(student.head, width, classes)


def _text_transformer(student: TextTransformer, sample: Input, outputs: int, tally: Tally) -> None:
    assert isinstance(sample, TextInput)  # the rules refuse others
    width, shape = student.width, text_attention(student, sample.length)
    tally.parameters += (sample.vocabulary + (shape.tokens if student.positions == "learned" else 0)) * width
    for _ in range(student.depth):
        _transformer_block(student, shape, tally)
    tally.keep(width * shape.tokens)
    tally.norm(student.norm, width, shape.tokens)
    tally.head(student.head, width, outputs)


def _transformer_block(student: Vit | TextTransformer, shape: AttentionShape, tally: Tally) -> None:
    width, hidden, tokens = student.width, feed_forward_width(student), shape.tokens
    tally.norm(student.norm, width, tokens)
    tally.keep(width * tokens)
    tally.attention(student.attention, shape, width)
    tally.norm(student.norm, width, tokens)
    tally.keep(width * tokens)
    tally.matrix(width, hidden, tokens, bias=True)
    tally.activation(student.activation, hidden * tokens)
    tally.matrix(hidden, width, tokens, bias=True)


def reconstruction_cost(student: InpFormerNetwork, frozen: Cost, shape: FeatureShape, image: ImageInput) -> Cost:
    """Costs of a network that reconstructs features of this shape, of an encoder with the costs `frozen`."""
    tally, (width, positions) = Tally(image), shape
    tally.keep(width * positions, len(student.paths) + 1)  # the features, and their mean
    tally.parameters += student.prototypes * width
    _cross_attention(student, width, student.prototypes, positions, tally)
    _feed_forward(student, width, positions, tally)  # the bottleneck
    for _ in student.paths:
        _cross_attention(student, width, positions, student.prototypes, tally)
        tally.parameters += student.heads  # their scales
    tally.keep(student.outputs)
    return beside(frozen, tally.cost())


def _cross_attention(student: InpFormerNetwork, width: int, queries: int, keys: int, tally: Tally) -> None:
    """A block of attention from `queries` tokens to `keys` others, and its feed-forward layers."""
    tally.parameters += 4 * width  # two norms
    tally.keep(width * (queries + keys))
    tally.matrix(width, width, queries, bias=True)
    tally.matrix(width, 2 * width, keys, bias=True)
    tally.keep(width * (queries + 2 * keys))
    tally.flops += 4 * queries * keys * width
    tally.keep(student.heads * queries * keys, 2)
    tally.matrix(width, width, queries, bias=True)
    tally.keep(width * queries, 3)
    _feed_forward(student, width, queries, tally)


def _feed_forward(student: InpFormerNetwork, width: int, positions: int, tally: Tally) -> None:
    tally.matrix(width, student.hidden(width), positions, bias=True)
    tally.keep(student.hidden(width) * positions, 2)
    tally.matrix(student.hidden(width), width, positions, bias=True)
    tally.keep(width * positions)


def _positions(image: ImageInput, stage: int) -> int:
    shrink = 1 << stage
    return -(-image.height // shrink) * -(-image.width // shrink)


_Counter = Callable[[Any, ImageInput, int, Tally], None]
_COUNTERS: dict[type, _Counter] = {
    Mlp: _mlp,
    CifarResNet: _resnet,
    WideResNet: _wide_resnet,
    CifarVgg: _vgg,
    MobileNetV2: _mobilenet_v2,
    ShuffleNetV2: _shufflenet_v2,
    Vit: _vit,
}
