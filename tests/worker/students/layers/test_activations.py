"""Activations against the plain formula in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from app.recipe.students import layers as spec
from app.recipe.students.layers import ActivationSpec, Gelu, LeakyRelu, Relu, Silu
from worker.students.layers.activations import ACTIVATIONS

FORMULAS: dict[ActivationSpec, Callable[[Tensor], Tensor]] = {
    Relu(): lambda x: torch.where(x > 0, x, 0 * x),
    LeakyRelu(): lambda x: torch.where(x > 0, x, 0.01 * x),
    LeakyRelu(slope=0.25): lambda x: torch.where(x > 0, x, 0.25 * x),
    Gelu(): lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    Silu(): lambda x: x / (1 + (-x).exp()),
}


@pytest.mark.parametrize("activation", FORMULAS, ids=lambda activation: activation.kind)
def test_an_activation_is_its_formula_with_its_gradient(activation: ActivationSpec) -> None:
    x = torch.linspace(-5, 5, 40, dtype=torch.float64, requires_grad=True)
    found, expected = ACTIVATIONS.build(activation)(x), FORMULAS[activation](x)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(y.square().sum(), x) for y in (found, expected))
    assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", FORMULAS, ids=lambda activation: activation.kind)
def test_what_its_gradient_needs_is_what_the_contract_has(activation: ActivationSpec) -> None:
    """Its own input, or the output that the next layer keeps anyway."""
    kept: list[Tensor] = []
    x = torch.randn(9, requires_grad=True)

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ACTIVATIONS.build(activation)(x)
    assert (kept[0].data_ptr() == x.data_ptr()) == activation.keeps_input
    assert len(kept) == 1


def test_every_kind_of_the_contract_is_built() -> None:
    assert ACTIVATIONS.kinds == set(spec.ACTIVATIONS) == {type(activation) for activation in FORMULAS}
