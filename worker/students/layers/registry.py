"""Implementations of layers by their kind in the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from torch import nn

from app.recipe.base import Option

P = ParamSpec("P")
Build = TypeVar("Build", bound=Callable[..., nn.Module])


class LayerRegistry(Generic[P]):
    """Builders of one family of layers: from a kind of the contract, and `P`, to a module."""

    def __init__(self) -> None:
        self._builders: dict[type[Option], Callable[..., nn.Module]] = {}

    def register(self, kind: type[Option]) -> Callable[[Build], Build]:
        """Decorator for the builder of a `kind`: a function, or a module's class."""

        def add(build: Build) -> Build:
            assert kind not in self._builders, kind
            self._builders[kind] = build
            return build

        return add

    def build(self, spec: Any, *args: P.args, **kwargs: P.kwargs) -> nn.Module:
        """A fresh module of the kind of `spec`."""
        return self._builders[type(spec)](spec, *args, **kwargs)

    @property
    def kinds(self) -> set[type[Option]]:
        """Kinds that have a builder."""
        return set(self._builders)
