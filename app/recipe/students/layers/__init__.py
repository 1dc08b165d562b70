"""Layers of built-in networks whose kind can be chosen: one module per family, each a tagged union on `kind`.

Each kind has one implementation in the module of the same name in `worker/students/layers`.
"""

from __future__ import annotations

from app.recipe.students.layers.activations import (
    ACTIVATIONS,
    Activation,
    ActivationSpec,
    Gelu,
    LeakyRelu,
    MlpActivation,
    OptimalHermite,
    Relu,
    Selu,
    Silu,
)
from app.recipe.students.layers.attentions import (
    ATTENTIONS,
    Attention,
    AttentionSpec,
    LinearAttention,
    SoftmaxAttention,
)
from app.recipe.students.layers.base import by_default
from app.recipe.students.layers.norms import (
    IMAGE_NORMS,
    NORMS,
    TOKEN_NORMS,
    BatchNorm,
    CrmsNorm,
    GroupNorm,
    ImageNorm,
    L1BatchNorm,
    L1LayerNorm,
    LayerNorm,
    NoNorm,
    Norm,
    NormSpec,
    PowerNorm,
    RmsNorm,
    TokenNorm,
    UnifiedNorm,
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
    "AttentionSpec",
    "BatchNorm",
    "CrmsNorm",
    "Gelu",
    "GroupNorm",
    "ImageNorm",
    "L1BatchNorm",
    "L1LayerNorm",
    "LayerNorm",
    "LeakyRelu",
    "LinearAttention",
    "MlpActivation",
    "NoNorm",
    "Norm",
    "NormSpec",
    "OptimalHermite",
    "PowerNorm",
    "Relu",
    "RmsNorm",
    "Selu",
    "Silu",
    "SoftmaxAttention",
    "TokenNorm",
    "UnifiedNorm",
    "by_default",
]
