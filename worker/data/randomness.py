"""Seeds for random draws, from the job's seed and a purpose, so that no draw depends on an earlier one."""

from __future__ import annotations

from hashlib import blake2b

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A seed of 63 bits for one purpose, such as ("order", epoch)."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))
