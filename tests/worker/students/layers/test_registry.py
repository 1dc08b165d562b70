"""A kind has one implementation."""

from __future__ import annotations

import pytest
from torch import nn

from app.recipe.students.layers import Relu, Silu
from worker.students.layers.registry import LayerRegistry


def test_what_registers_itself_by_a_kind_builds_it() -> None:
    registry = LayerRegistry[[int]]()

    @registry.register(Relu)
    def build(spec: Relu, width: int) -> nn.Module:
        return nn.Linear(width, 1)

    built = registry.build(Relu(), 3)
    assert isinstance(built, nn.Linear)
    assert built.in_features == 3
    assert registry.kinds == {Relu}
    with pytest.raises(KeyError):
        registry.build(Silu(), 3)
    with pytest.raises(AssertionError):
        registry.register(Relu)(build)
