"""Layers of built-in networks whose kind can be chosen: one module per family, each a tagged union on `kind`.

Each kind has one implementation in the module of the same name in `worker/students/layers`.
"""

from __future__ import annotations

from app.recipe.students.layers.activations import ACTIVATIONS, Activation, ActivationSpec, Gelu, LeakyRelu, Relu, Silu
from app.recipe.students.layers.attentions import (
    ATTENTIONS,
    Attention,
    AttentionCost,
    AttentionShape,
    AttentionSpec,
    LinearAttention,
    NalaAttention,
    SigmoidAttention,
    SoftAttention,
    SoftmaxAttention,
    SoftplusAttention,
)
from app.recipe.students.layers.base import by_default
from app.recipe.students.layers.norms import (
    IMAGE_NORMS,
    NORMS,
    TOKEN_NORMS,
    BatchNorm,
    GroupNorm,
    ImageNorm,
    LayerNorm,
    NoNorm,
    Norm,
    NormSpec,
    RmsNorm,
    TokenNorm,
)

__all__ = [
    "ACTIVATIONS",
    "ATTENTIONS",
    "IMAGE_NORMS",
    "NORMS",
    "TOKEN_NORMS",
    "Activation",
    "ActivationSpec",
    "Attention",
    "AttentionCost",
    "AttentionShape",
    "AttentionSpec",
    "BatchNorm",
    "Gelu",
    "GroupNorm",
    "ImageNorm",
    "LayerNorm",
    "LeakyRelu",
    "LinearAttention",
    "NalaAttention",
    "NoNorm",
    "Norm",
    "NormSpec",
    "Relu",
    "RmsNorm",
    "SigmoidAttention",
    "Silu",
    "SoftAttention",
    "SoftmaxAttention",
    "SoftplusAttention",
    "TokenNorm",
    "by_default",
]
