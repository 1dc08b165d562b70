"""Counts the bytes of tensors that are alive, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Bytes of the storages that operations make while it is entered: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.finalize[Any, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        inputs = {leaf.untyped_storage()._cdata for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and (storage := leaf.untyped_storage())._cdata not in inputs:
                self._add(storage)
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known and self._known[storage._cdata].alive:
            return
        size, key = storage.nbytes(), storage._cdata
        self.now += size
        self.peak = max(self.peak, self.now)
        self._known[key] = weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.now -= size


def peak_bytes(act: Callable[[], object]) -> int:
    """The most bytes of tensors made by `act` that are alive at once."""
    with LiveMemory() as memory:
        act()
    return memory.peak
