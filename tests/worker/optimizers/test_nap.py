"""Normalize-and-Project keeps norms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from app.recipe.optimizers import AdamP, AdamW, NormalizeAndProject, Optimizer, Sgd, SinkGd, Swan
from tests.worker.optimizers.test_optimizers import build, network, take_steps
from worker.errors import UserError
from worker.optimizers import build_optimizer

INNER = [Sgd(lr=0.1), Sgd(lr=0.1, momentum=0.0), AdamW(), AdamP(), SinkGd(), Swan()]


def norms(model: nn.Sequential) -> list[float]:
    """Norms of the hidden convolution, of scale and offset together, and of the output layer."""
    pair = torch.cat([model[1].weight, model[1].bias])
    return [tensor.detach().norm().item() for tensor in (model[0].weight, pair, model[3].weight)]


@pytest.mark.parametrize("inner", INNER, ids=lambda spec: spec.kind)
def test_hidden_weights_and_normalisation_keep_their_norms_and_the_output_layer_does_not(inner: Optimizer) -> None:
    model = network()
    conv, _, head = norms(model)
    take_steps(model, build(NormalizeAndProject(inner=inner), model), 0, 5)
    after = norms(model)
    assert after[:2] == pytest.approx([conv, math.sqrt(3)], rel=1e-6)
    assert after[2] != pytest.approx(head, rel=1e-6)


def test_between_two_projections_norms_change() -> None:
    model = network()
    conv = norms(model)[0]
    optimizer = build(NormalizeAndProject(inner=AdamW(lr=0.01), every_steps=3), model)
    kept = []
    for step in range(6):
        take_steps(model, optimizer, step, step + 1)
        kept.append(norms(model)[0] == pytest.approx(conv, rel=1e-6))
    assert kept == [False, False, True, False, False, True]


def test_weights_of_norm_0_stay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    nn.init.zeros_(model[0].weight)
    optimizer = build(NormalizeAndProject(inner=Sgd(lr=0.1)), model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_weights_in_16_bits_are_scaled_where_they_are_exact() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 2)).bfloat16()
    before = model[0].weight.detach().float().norm().item()
    optimizer = build(NormalizeAndProject(inner=AdamP(lr=0.1)), model)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    exact = optimizer.state[model[0].weight]["master"]
    assert exact.norm().item() == pytest.approx(before, rel=1e-6)
    assert torch.equal(exact.bfloat16(), model[0].weight)


def test_a_network_without_normalisation_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(UserError, match="the trained modules have none; accepted: any optimizer but nap") as caught:
        build_optimizer(NormalizeAndProject(inner=AdamW()), model.parameters(), [model])
    assert caught.value.param == "recipe.optimizer.kind"


def test_the_rate_is_that_of_the_optimizer_within() -> None:
    assert NormalizeAndProject(inner=Sgd(lr=0.3)).lr == 0.3
