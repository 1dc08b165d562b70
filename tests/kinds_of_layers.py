"""Students with every kind of layer, for the tests of all kinds."""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]
LAYERED: dict[str, Document] = {
    "layer norm": {"architecture": "cifar-resnet", "norm": {"kind": "layer"}, "activation": {"kind": "gelu"}},
    "group norm": {
        **{"architecture": "cifar-resnet", "norm": {"kind": "group", "groups": 2}},
        "activation": {"kind": "leaky-relu"},
    },
    "rms norm": {"architecture": "wide-resnet", "norm": {"kind": "rms"}},
    "no norm": {"architecture": "cifar-vgg", "norm": {"kind": "none"}, "activation": {"kind": "silu"}},
    **{
        f"{kind} norm of tokens": {"architecture": "vit", "patch_size": 4, "norm": {"kind": kind}}
        for kind in ("crms", "power", "unified", "l1-layer")
    },
    **{
        f"{kind} norm of images": {"architecture": "wide-resnet", "norm": {"kind": kind}}
        for kind in ("unified", "l1-batch", "l1-layer")
    },
    "selu": {"architecture": "mlp", "activation": {"kind": "selu", "alpha_dropout": 0.1}},
    "cubic activation": {"architecture": "mlp", "activation": {"kind": "optimal-hermite"}},
    "replaced norms": {"architecture": "transformers", "replace": [{"match": "*layernorm*", "with": {"kind": "rms"}}]},
    "replaced attention": {
        "architecture": "transformers",
        "replace": [{"match": "*.attention", "with": {"kind": "sigmoid"}}],
    },
    **{
        f"{kind} attention": {"architecture": "vit", "patch_size": 4, "attention": {"kind": kind}}
        for kind in ("linear", "sigmoid", "softplus", "soft", "nala")
    },
    "normalised head": {"architecture": "cifar-resnet", "head": {"kind": "normalised"}},
}
"""Students of layers that no architecture has by default."""
