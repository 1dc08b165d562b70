"""Unused tensors of a checkpoint that are left from its pretraining.

The Transformers library ignores every unused tensor. Here only tensors are ignored that the library has in a
pretraining network of the same kind; all others indicate another network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

_MAPPINGS = (
    "MODEL_MAPPING",
    "MODEL_FOR_PRETRAINING_MAPPING",
    "MODEL_FOR_MASKED_LM_MAPPING",
    "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING",
)
_FORMER = {".gamma": ".weight", ".beta": ".bias"}
"""Suffixes of names before 2019, and of the same tensors today."""
MOST = 5
"""Most names in a note."""


def leftovers(names: Iterable[str], described: Any, prefix: str, table: Any) -> list[str]:
    """The `names` of unused tensors that are left from pretraining, sorted. `described` is the library's configuration
    of the network, `prefix` the prefix of its body's weights if it has a head, and `table` the library's module of
    classes by configuration."""
    unused = sorted(names)
    known = {_bare(name, prefix) for name in _pretrained(described, table)} if unused else set()
    return [name for name in unused if _bare(name, prefix) in known]


def describe_ignored(ignored: list[str]) -> str:
    """A note about ignored tensors."""
    return f"ignored {shown_names(ignored)}: left from its pretraining, and no part of the network"


def shown_names(tensors: list[str]) -> str:
    """The first names of tensors, and how many more there are."""
    more = f" and {len(tensors) - MOST} more" if len(tensors) > MOST else ""
    return ", ".join(map(repr, tensors[:MOST])) + more


def _pretrained(described: Any, table: Any) -> Iterator[str]:
    """Names of the weights of all pretraining networks of this kind, which are built without memory."""
    for mapping in _MAPPINGS:
        found = getattr(table, mapping).get(type(described), ())
        for kind in found if isinstance(found, tuple) else (found,):
            with torch.device("meta"):
                yield from kind._from_config(described).state_dict()


def _bare(name: str, prefix: str) -> str:
    """The present form of a name, without the prefix of a network with a head."""
    for former, now in _FORMER.items():
        name = name.removesuffix(former) + (now if name.endswith(former) else "")
    return name.removeprefix(f"{prefix}.")
