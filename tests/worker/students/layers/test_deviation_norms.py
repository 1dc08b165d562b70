"""Running statistics of L1 batch normalisation, and constants as input."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from app.recipe.students.layers import L1BatchNorm, L1LayerNorm
from worker.students.layers.deviation_norms import BatchDeviationNorm, MeanDeviationNorm


def test_in_evaluation_the_running_statistics_normalise() -> None:
    norm = BatchDeviationNorm(L1BatchNorm(), 2)
    images = 3 * torch.randn(64, 2, 4, 4) + 5
    for _ in range(100):
        norm.train()(images)
    assert_close(norm.running_mean, images.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
    assert_close(
        norm.running_deviation, (images - norm.running_mean.view(2, 1, 1)).abs().mean((0, 2, 3)), rtol=1e-3, atol=0
    )
    assert_close(norm.eval()(images), norm.train()(images), rtol=1e-2, atol=1e-2)
    assert_close(norm.eval()(images)[:1], norm.eval()(images[:1]))


def test_one_value_per_channel_has_no_deviation_and_leaves_the_statistics() -> None:
    norm = BatchDeviationNorm(L1BatchNorm(eps=1e-3), 2).train()
    assert_close(norm(torch.full((1, 2, 1, 1), 4.0)), torch.full((1, 2, 1, 1), 4.0 / 1.001))
    assert norm.running_mean.tolist() == [0.0, 0.0]


def test_constants_are_normalised_to_the_offset_with_finite_gradients() -> None:
    norm, x = MeanDeviationNorm(L1LayerNorm(), 4, 1), torch.full((3, 4), 7.0, requires_grad=True)
    torch.nn.init.constant_(norm.bias, 0.5)
    out = norm(x)
    out.square().sum().backward()
    assert torch.equal(out, torch.full((3, 4), 0.5))
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_deviation_of_normal_values_is_four_fifths_of_the_standard_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(1000, 1000)
    assert_close(MeanDeviationNorm(L1LayerNorm(), 1000, 1)(x).std() * 0.798, torch.tensor(1.0), rtol=2e-3, atol=0)
