"""Properties of normalised gradients, and the parameters they apply to."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from app.recipe.optimizers import AdamW, Sgd, SinkGd, Swan
from worker.optimizers import build_optimizer
from worker.optimizers.base import MASTER
from worker.optimizers.roles import hidden_matrices, scales_and_offsets
from worker.optimizers.sinkgd import equal_norms
from worker.optimizers.swan import newton_schulz, polar_factor, standardized_rows

sizes = st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9))


def matrices(size: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(size=sizes, seed=st.integers(0, 99), factor=st.floats(1e-3, 1e3))
def test_the_size_of_a_gradient_does_not_count(size: tuple[int, int, int], seed: int, factor: float) -> None:
    found = matrices(size, seed)
    torch.testing.assert_close(equal_norms(factor * found, 5), equal_norms(found, 5))


@settings(deadline=None)
@given(size=sizes, seed=st.integers(0, 99))
def test_columns_have_equal_norms_exactly_and_rows_in_the_limit(size: tuple[int, int, int], seed: int) -> None:
    found = equal_norms(matrices(size, seed), 5)
    torch.testing.assert_close(found.norm(dim=1), torch.full_like(found[:, 0], math.sqrt(size[1])))
    limit = equal_norms(matrices(size, seed).abs() + 0.1, 200)
    torch.testing.assert_close(limit.norm(dim=2), torch.full_like(limit[:, :, 0], math.sqrt(size[2])))


def test_rows_and_columns_of_zeros_stay_zeros() -> None:
    gradients = matrices((2, 4, 5))
    gradients[:, 1] = gradients[:, :, 2] = 0.0
    for made in (equal_norms(gradients, 5), newton_schulz(standardized_rows(torch.zeros(1, 3, 4)), 10)):
        assert made.isfinite().all()
    assert equal_norms(gradients, 5)[:, 1].abs().max() == 0.0
    assert equal_norms(gradients, 5)[:, :, 2].abs().max() == 0.0


def test_standardised_rows_have_mean_0_and_mean_square_1() -> None:
    found = standardized_rows(matrices((2, 3, 50)))
    torch.testing.assert_close(found.mean(2), torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(found.square().mean(2), torch.ones(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("size", [(2, 3, 8), (2, 8, 3)])
def test_products_of_matrices_tend_to_the_polar_factor(size: tuple[int, int, int]) -> None:
    found = newton_schulz(matrices(size), 30)
    torch.testing.assert_close(found, polar_factor(matrices(size)))
    short = found @ found.mT if size[1] < size[2] else found.mT @ found
    torch.testing.assert_close(short, torch.eye(3, dtype=torch.float64).expand(2, 3, 3))


@pytest.mark.parametrize("spec", [SinkGd(), Swan()], ids=lambda spec: spec.kind)
def test_hidden_matrices_have_no_state_and_move_at_their_own_rate(spec: SinkGd | Swan) -> None:
    model = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    optimizer = build_optimizer(spec, model.parameters(), [model])
    hidden, before = model[1].weight, model[1].weight.detach().clone()
    model(torch.arange(5)).square().mean().backward()
    optimizer.step()
    assert {id(one) for one in optimizer.state} == {id(one) for one in model.parameters() if one is not hidden}
    rms = (hidden.detach() - before).square().mean().sqrt().item()
    assert rms == pytest.approx(spec.lr * spec.matrix_ratio, rel=0.01)


@pytest.mark.parametrize("spec", [SinkGd(), Swan()], ids=lambda spec: spec.kind)
def test_what_adam_trains_takes_adams_steps(spec: SinkGd | Swan) -> None:
    vectors = [nn.Parameter(torch.ones(6)) for _ in range(2)]
    adam = AdamW(lr=spec.lr, weight_decay=0.0)
    pair = [build_optimizer(one, [vector]) for one, vector in zip((spec, adam), vectors, strict=True)]
    for step in range(5):
        for optimizer, vector in zip(pair, vectors, strict=True):
            vector.grad = torch.randn(6, generator=torch.Generator().manual_seed(step))
            optimizer.step()
    torch.testing.assert_close(*vectors)


@pytest.mark.parametrize("spec", [SinkGd(), Swan()], ids=lambda spec: spec.kind)
def test_a_matrix_in_16_bits_has_exact_weights(spec: SinkGd | Swan) -> None:
    weight = nn.Parameter(torch.ones(3, 4, dtype=torch.bfloat16))
    optimizer = build_optimizer(spec, [weight])
    weight.grad = torch.randn(3, 4).bfloat16()
    optimizer.step()
    assert optimizer.state[weight][MASTER].dtype == torch.float32


def test_what_a_parameter_is_for_is_seen_in_its_network() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Parameter(torch.zeros(1, 4, 6))
            self.tokens, self.mix, self.norm = nn.Embedding(5, 6), nn.Linear(6, 6), nn.RMSNorm(6)
            self.one, self.head = nn.Conv1d(6, 1, 1), nn.Linear(6, 5, bias=False)

    root = Root()
    assert [one.shape for one in hidden_matrices(root.parameters(), [root])] == [(6, 6)]
    assert hidden_matrices(root.parameters(), [root])[0] is root.mix.weight
    assert [[id(one) for one in pair] for pair in scales_and_offsets(root.parameters(), [root])] == [
        [id(root.norm.weight)]
    ]
    root.head.weight = root.tokens.weight
    assert [id(one) for one in hidden_matrices(root.parameters(), [root])] == [id(root.mix.weight)]


def test_parameters_that_do_not_learn_are_nobodys() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    assert hidden_matrices(model[2].parameters(), [model]) == []
    assert scales_and_offsets(model[2].parameters(), [model]) == []
    assert build_optimizer(Sgd(lr=0.1), model[2].parameters(), [model]).param_groups[0]["lr"] == 0.1
