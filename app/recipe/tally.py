"""Sums of the costs of a network's layers."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from app.recipe.students.architectures import CifarResNet, CifarVgg, MobileNetV2, ShuffleNetV2, WideResNet
from app.recipe.students.heads import HeadSpec
from app.recipe.students.inputs import Input
from app.recipe.students.layers import ActivationSpec, AttentionShape, AttentionSpec, NormSpec


@dataclass(frozen=True)
class Cost:
    """Costs of one network."""

    parameters: int
    """All weights."""
    flops: int
    """Floating-point operations of one sample's forward pass: two per multiply-add of a linear or convolutional layer
    or of attention; element-wise work is not counted."""
    activations: int
    """Elements kept for the backward pass per sample, roughly."""
    peak_activation: int
    """Elements of the largest layer's output per sample; a forward pass alone needs twice as many."""
    hidden_weights: int
    """Trained weights in the matrices of hidden layers, for which some optimizers have no state."""
    frozen_parameters: int = 0
    """Those of the `parameters` that are not trained, so that they have neither gradient nor optimizer state."""
    frozen_flops: int = 0
    """Those of the `flops` that have no backward pass."""

    def training_flops(self, passes: int) -> int:
        """Operations of training on one sample, which takes as many forward passes of what is trained, a backward pass
        counted as two."""
        return passes * (self.flops - self.frozen_flops) + self.frozen_flops


ImageNetwork = CifarResNet | WideResNet | CifarVgg | MobileNetV2 | ShuffleNetV2
"""Networks with a choice of norms and activations of images."""


class Tally:
    """Sums of costs, layer by layer."""

    def __init__(self, sample: Input) -> None:
        self.parameters = self.flops = self.matrices = self.last_matrix = 0
        self.activations = self.peak = prod(sample.axes)
        self.normalised = set[int]()
        """Channels of the layers that are normalised."""

    def matrix(self, fan_in: int, outputs: int, positions: int = 1, *, bias: bool) -> None:
        """A linear map from `fan_in` inputs to `outputs` channels at each of `positions`."""
        self.parameters += (fan_in + bias) * outputs
        self.flops += 2 * fan_in * outputs * positions
        self.last_matrix = fan_in * outputs if min(fan_in, outputs) > 1 else self.last_matrix
        self.matrices += fan_in * outputs if min(fan_in, outputs) > 1 else 0

    def conv_norm(
        self, layers: ImageNetwork, fan_in: int, outputs: int, positions: int, *, linear: bool = False
    ) -> None:
        """A convolution, its norm and, unless it is `linear`, its activation."""
        self.matrix(fan_in, outputs, positions, bias=layers.norm.needs_bias)
        self.norm(layers.norm, outputs, positions)
        if linear:
            self.keep(outputs * positions)
        else:
            self.activation(layers.activation, outputs * positions)

    def norm(self, norm: NormSpec, channels: int, positions: int) -> None:
        """A norm; its output is counted with the next layer, which may keep it."""
        self.normalised.add(channels)
        self.parameters += norm.vectors * channels
        self.keep(channels * positions, norm.keeps)

    def activation(self, activation: ActivationSpec, elements: int) -> None:
        """An activation; its output is kept by the next layer."""
        self.keep(elements, 1 + activation.keeps_input)

    def attention(self, attention: AttentionSpec, shape: AttentionShape, width: int) -> None:
        """Attention with its linear maps, of tokens of this width."""
        mapped = len(attention.projections) * shape.width
        self.matrix(width, mapped, shape.tokens, bias=True)
        self.keep(mapped * shape.tokens)
        between = attention.cost(shape)
        self.parameters += between.parameters
        self.matrices += between.matrices
        self.flops += between.flops
        self.activations += between.kept
        self.peak = max(self.peak, between.largest)
        self.matrix(shape.width, width, shape.tokens, bias=True)

    def head(self, head: HeadSpec, features: int, outputs: int) -> None:
        """The last layer; its features and outputs are kept."""
        self.keep(features)
        self.last_layer(head, features, outputs)

    def last_layer(self, head: HeadSpec, features: int, outputs: int) -> None:
        """The last layer on features that the layer before keeps; its outputs are kept."""
        self.matrix(features, head.rows(outputs), bias=head.has_bias)
        self.parameters += head.further_weights
        self.keep(head.rows(outputs))

    def keep(self, elements: int, times: int = 1) -> None:
        """`times` tensors of `elements` that are kept for the backward pass."""
        self.activations += times * elements
        self.peak = max(self.peak, elements)

    def cost(self) -> Cost:
        """The sums; the last matrix is not hidden."""
        return Cost(self.parameters, self.flops, self.activations, self.peak, self.matrices - self.last_matrix)
