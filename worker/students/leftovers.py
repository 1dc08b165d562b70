"""Tensors that a checkpoint holds beside those of its network: what old releases left in it of its pretraining.

The Transformers library passes over whatever it has no place for. Here that is done only for tensors which the library
itself has a name for in a network of the same kind that is pretrained; all others are a sign of another network.
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
"""Ends of names before 2019, and of the same tensors today."""
MOST = 5
"""Names that a note repeats."""


def leftovers(names: Iterable[str], described: Any, prefix: str, table: Any) -> list[str]:
    """Which of the `names` of unused tensors are known leftovers, sorted; `described` is the library's configuration of
    the network, `prefix` begins the names of its body's weights where it has a head, and `table` is the library's
    module of classes by configuration."""
    unused = sorted(names)
    known = {_bare(name, prefix) for name in _pretrained(described, table)} if unused else set()
    return [name for name in unused if _bare(name, prefix) in known]


def told(ignored: list[str]) -> str:
    """A note about tensors that were passed over."""
    more = f" and {len(ignored) - MOST} more" if len(ignored) > MOST else ""
    return (
        f"passed over {', '.join(map(repr, ignored[:MOST]))}{more}: left of its pretraining, and no part of the network"
    )


def _pretrained(described: Any, table: Any) -> Iterator[str]:
    """Names of the weights of all networks of this kind that are pretrained; they are built without memory."""
    for mapping in _MAPPINGS:
        found = getattr(table, mapping).get(type(described), ())
        for kind in found if isinstance(found, tuple) else (found,):
            with torch.device("meta"):
                yield from kind._from_config(described).state_dict()


def _bare(name: str, prefix: str) -> str:
    """A name as it is today, whether the network has a head or not."""
    for former, now in _FORMER.items():
        name = name.removesuffix(former) + (now if name.endswith(former) else "")
    return name.removeprefix(f"{prefix}.")
