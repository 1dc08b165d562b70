"""Networks of converted teachers (2305.14858)."""

from __future__ import annotations

from typing import Any

from app.recipe.students.architectures import Transformers, Vit
from app.recipe.students.conversion import Convert
from app.recipe.students.heads import LinearHead
from app.recipe.students.inputs import ImageInput
from app.recipe.students.layers import CrmsNorm, Gelu, LayerNorm, LinearAttention, Relu, RmsNorm, Silu, SoftmaxAttention
from app.recipe.students.model import ModelConfig
from app.recipe.students.shapes import attention_width, feed_forward_width
from app.recipe.students.started import Unshrinkable

ATTENTIONS = (SoftmaxAttention, LinearAttention)
"""Kinds that read tokens by one linear layer alone."""
LIBRARY_ACTIVATIONS = {"gelu": Gelu(), "relu": Relu(), "silu": Silu(), "swish": Silu()}
"""Activations of the Transformers library that this project has, by their names there."""
LIBRARY_SIZES: dict[str, Any] = {
    **{"patch_size": 16, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    **{"intermediate_size": 3072, "hidden_act": "gelu", "layer_norm_eps": 1e-12},
}
"""Defaults of a `vit` of the Transformers library."""


def converted(student: Convert, teacher: ModelConfig) -> Vit:
    """The network that equals `teacher`. Raises `Unshrinkable` where none does."""
    network = as_vit(teacher)
    if network.quantise is not None:
        found = f"a teacher with weights that are quantised by {network.quantise.kind} has others when they are changed"
        raise Unshrinkable("architecture", found, "a teacher without quantise")
    if not isinstance(network.norm, LayerNorm):
        found = f"a teacher with norms of kind {network.norm.kind} has no layer norms to convert"
        raise Unshrinkable("architecture", found, "a teacher with norms of kind layer")
    if not isinstance(network.head, LinearHead):
        found = f"a teacher with the head {network.head.kind} has no linear layer behind its last norm"
        raise Unshrinkable("architecture", found, "a teacher with the head linear")
    if not isinstance(network.attention, ATTENTIONS):
        found = f"attention of kind {network.attention.kind} reads tokens by more than a linear layer"
        raise Unshrinkable("architecture", found, "a teacher with softmax or linear attention")
    eps = network.norm.eps
    if student.to == "pre-rmsnorm":
        return network.model_copy(update={"norm": RmsNorm(eps=eps)})
    if network.width < 2:
        raise Unshrinkable("to", "is pre-crmsnorm, and the teacher's tokens have one number", "pre-rmsnorm")
    width, head_size = network.width - 1, attention_width(network) // network.heads
    sizes = {"width": width, "head_size": head_size, "mlp_ratio": feed_forward_width(network) / width}
    return network.model_copy(update={**sizes, "norm": CrmsNorm(eps=eps)})


def as_vit(teacher: ModelConfig) -> Vit:
    """The teacher's network as a `vit` of this project, with the same function. Raises `Unshrinkable`."""
    network = teacher.architecture
    if isinstance(network, Vit):
        return network
    if isinstance(network, Transformers) and network.model_type == "vit":
        return _of_the_library(network, teacher)
    name = network.model_type if isinstance(network, Transformers) else network.architecture
    found = f"a teacher of type {name} can't be converted, only a vision transformer with a norm before each layer"
    raise Unshrinkable("architecture", found, "a teacher of type vit, of this project or of the Transformers library")


def _of_the_library(network: Transformers, teacher: ModelConfig) -> Vit:
    config = {**LIBRARY_SIZES, **network.config}
    image, activation = teacher.input, LIBRARY_ACTIVATIONS.get(str(config["hidden_act"]))
    if activation is None:
        found = f"the teacher's activation is {config['hidden_act']}, which networks of this project lack"
        raise Unshrinkable("architecture", found, f"one of {', '.join(LIBRARY_ACTIVATIONS)}")
    if not (teacher.has_head and teacher.embedding is None and isinstance(image, ImageInput)):
        raise Unshrinkable("architecture", "the teacher has no linear classifier of images", "a teacher that has one")
    return Vit(
        patch_size=config["patch_size"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        mlp_ratio=config["intermediate_size"] / config["hidden_size"],
        norm=LayerNorm(eps=config["layer_norm_eps"]),
        activation=activation,
    )
