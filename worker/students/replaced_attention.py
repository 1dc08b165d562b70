"""Attention of a library's network as another kind, through the library's registry of attention functions.

The network's modules keep their maps to queries, keys and values, and give them to a function by the name in their
configuration, of which a replaced module has a copy with another name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from app.recipe.students.layers import AttentionShape, AttentionSpec
from worker.errors import UserError
from worker.kernels.sigmoid_attention import AttentionMask
from worker.students.layers.attentions import ATTENTIONS, SelfAttention
from worker.transformers_library import library

REGISTRY = "ALL_ATTENTION_FUNCTIONS"
"""Name of the library's registry in the modules whose attention is looked up there."""
Attention = Callable[..., tuple[Tensor, None]]


def has_replaceable_attention(module: nn.Module) -> bool:
    """Whether a module gives all queries, keys and values to a function of the library's registry."""
    looks_up = REGISTRY in getattr(type(module).forward, "__globals__", {})
    return looks_up and hasattr(module, "is_causal") and getattr(module, "sliding_window", None) is None


def set_attention(module: nn.Module, spec: AttentionSpec, tokens: int | None) -> None:
    """Let `module` compute attention of the kind of `spec`; `tokens` are the most that a sample has, or none if they
    are unknown, as of images: then those that it has count."""
    name = f"stillhouse {tokens} {spec.model_dump_json()}"
    library().AttentionInterface.register(name, _attention(spec, tokens))
    module.config = copy.copy(module.config)
    module.config._attn_implementation = name  # type: ignore[union-attr]


def _attention(spec: AttentionSpec, tokens: int | None) -> Attention:
    """The function that the library calls."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
    ) -> tuple[Tensor, None]:
        shared = query.shape[1] // key.shape[1]
        if shared > 1:
            key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        mask = AttentionMask(_visible_tokens(attention_mask), causal=bool(module.is_causal))
        attended = _kind(spec, tokens or key.shape[-2]).attend(query, key, value, mask=mask)
        return attended.transpose(1, 2).contiguous(), None

    return attention


def _kind(spec: AttentionSpec, tokens: int) -> SelfAttention:
    """A layer of this kind, of which the attention alone is used: its maps are of one number."""
    with torch.device("meta"):
        layer = ATTENTIONS.build(spec, AttentionShape(tokens, width=1, heads=1))
    assert isinstance(layer, SelfAttention)
    return layer


def _visible_tokens(mask: Tensor | None) -> Tensor | None:
    """(N, K) bool, from the library's mask (N, 1, Q, K) bool: the last query sees all that isn't padding. Raises
    UserError (`invalid_architecture`) for numbers that are added to the products of queries and keys."""
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        found = "student.replace: this network adds numbers to the products of queries and keys, as by their places"
        raise UserError("invalid_architecture", f"{found}; accepted: a network that only masks them", "student.replace")
    return mask[:, 0, -1]
