"""Activations against the plain formula in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor
from torch.testing import assert_close

from app.recipe.students import layers as spec
from app.recipe.students.layers import ActivationSpec, Gelu, LeakyRelu, OptimalHermite, Relu, Selu, Silu
from worker.students.layers.activations import ACTIVATIONS, selu

L, A = 1.0507009873554805, 1.6732632423543772
FORMULAS: dict[ActivationSpec, Callable[[Tensor], Tensor]] = {
    Relu(): lambda x: torch.where(x > 0, x, 0 * x),
    LeakyRelu(): lambda x: torch.where(x > 0, x, 0.01 * x),
    LeakyRelu(slope=0.25): lambda x: torch.where(x > 0, x, 0.25 * x),
    Gelu(): lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    Silu(): lambda x: x / (1 + (-x).exp()),
    Selu(): lambda x: torch.where(x < 0, L * A * (x.exp() - 1), L * x),
    OptimalHermite(dimension=3): lambda x: (
        2**-0.75 * ((x**3 - 3 * x) / math.sqrt(6) + x) + math.sqrt(1 - 2**-0.5) * (x**2 - 1) / math.sqrt(2)
    ),
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


def test_selu_has_no_infinite_gradient_at_large_values() -> None:
    x = torch.tensor([-1e4, 0.0, 1e4], requires_grad=True)
    selu(x).sum().backward()
    assert_close(x.grad, torch.tensor([0.0, L, L]))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4])
def test_alpha_dropout_keeps_mean_and_variance_and_is_off_in_evaluation(rate: float) -> None:
    torch.manual_seed(0)
    module, x = ACTIVATIONS.build(Selu(alpha_dropout=rate)), torch.randn(2000, 500)
    dropped = module.train()(x)
    assert_close(torch.stack([dropped.mean(), dropped.var()]), torch.tensor([0.0, 1.0]), rtol=0.01, atol=0.01)
    assert torch.equal(module.eval()(x), selu(x))
    assert torch.equal(dropped, selu(x)) == (rate == 0.0)


@pytest.mark.parametrize("dimension", [2, 3, 7])
def test_the_cubic_has_the_hermite_coefficients_of_the_paper(dimension: int) -> None:
    """Squares that sum to 1, a derivative of the dual of 2 at 1, and the exponent of the kernel, -4 log a_1 / log 2."""
    nodes, weights = (torch.from_numpy(each) for each in hermegauss(20))
    within = nodes.clamp(-5, 5)  # quadrature of a polynomial, whose clipping beyond 5 is left out
    third, second = (within**3 - 3 * within) / math.sqrt(6), (within**2 - 1) / math.sqrt(2)
    values = ACTIVATIONS.build(OptimalHermite(dimension=dimension))(within)
    share = weights / weights.sum() * (nodes.abs() <= 5)
    found = [float((share * values * basis).sum()) for basis in (torch.ones_like(nodes), within, second, third)]
    assert found[0] == pytest.approx(0.0, abs=1e-3)
    assert sum(each**2 for each in found) == pytest.approx(1.0, abs=1e-3)
    assert sum(number * each**2 for number, each in enumerate(found)) == pytest.approx(2.0, abs=2e-3)
    assert -4 * math.log2(found[1]) == pytest.approx(dimension, abs=1e-2)
