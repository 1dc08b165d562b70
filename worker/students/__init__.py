"""Student networks: one module per architecture of the contract, each initialised from torch's seed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from app.recipe.cost import as_image
from app.recipe.students.architectures import (
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
from app.recipe.students.model import ImageInput, Input, ModelConfig
from app.recipe.students.pooling import Embedding
from worker.students import (
    cifar_resnet,
    cifar_vgg,
    dual_encoder,
    hugging_face,
    inp_former,
    mlp,
    mobilenet_v2,
    shufflenet_v2,
    text_transformer,
    timm_network,
    vit,
    wide_resnet,
)
from worker.students.quantisers import quantised
from worker.transformers_library import blaming_the_config

Builder = Callable[[Any, ImageInput, int], nn.Module]
BUILDERS: dict[type, Builder] = {
    Mlp: mlp.build,
    CifarResNet: cifar_resnet.build,
    WideResNet: wide_resnet.build,
    CifarVgg: cifar_vgg.build,
    MobileNetV2: mobilenet_v2.build,
    ShuffleNetV2: shufflenet_v2.build,
    Vit: vit.build,
}


def blaming(network: Network) -> AbstractContextManager[None]:
    """Turn a library's error while it builds or runs this network into a UserError (`invalid_architecture`)."""
    if isinstance(network, InpFormerNetwork):
        return blaming(network.encoder)
    if isinstance(network, Timm):
        return timm_network.blaming_the_arguments(network)
    if isinstance(network, DualEncoder):
        network = dual_encoder.encoder_of(network)
    return blaming_the_config(network) if isinstance(network, Transformers) else nullcontext()


def build(
    network: Network, sample: Input, outputs: int, embedding: Embedding | None = None, *, per_token: bool = False
) -> nn.Module:
    """A freshly initialised network: from preprocessed samples (N, ...), float32 or int64 tokens, to floating logits,
    predictions, or embeddings as `embedding` describes (N, outputs); with `per_token` to logits of each of S tokens
    (N, S, outputs)."""
    if isinstance(network, InpFormerNetwork):
        encoder = build(network.encoder, sample, network.encoder_outputs)
        with blaming(network):  # it is run once, to see the shapes of its features
            return inp_former.build(network, encoder, as_image(sample))
    if isinstance(network, Timm):
        return timm_network.build(network, as_image(sample), outputs)
    if isinstance(network, DualEncoder):
        return dual_encoder.build(network, sample, outputs)
    if isinstance(network, Transformers):
        return hugging_face.build(network, sample, outputs, embedding, per_token=per_token)
    if isinstance(network, TextTransformer):
        return text_transformer.build(network, sample, outputs)
    built = BUILDERS[type(network)](network, as_image(sample), outputs)
    return built if network.quantise is None else quantised(built, network.quantise)


def build_described(config: ModelConfig) -> nn.Module:
    """A freshly initialised network for a model's description; see `build`."""
    per_token = config.task_spec.per_token
    return build(config.architecture, config.input, config.outputs, config.pooling, per_token=per_token)
