"""PowerNorm's state over the steps; its numbers are in the golden vectors."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from app.recipe.students.layers import PowerNorm
from worker.students.layers.power_norm import QuadraticNorm

WIDTH = 6


def test_in_evaluation_it_is_a_factor_per_channel_behind_the_scaling_of_a_token() -> None:
    torch.manual_seed(0)
    norm, tokens = QuadraticNorm(PowerNorm(warmup_steps=5), WIDTH), torch.randn(64, 9, WIDTH) * torch.arange(1, 7)
    for _ in range(60):
        norm.train()(tokens)
    assert_close(norm.eval()(tokens), norm.train()(tokens), rtol=1e-2, atol=1e-3)
    scaled = tokens / (tokens.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert_close(norm.eval()(tokens), scaled * norm.factor)


def test_evaluation_changes_no_state_and_training_counts_its_steps() -> None:
    norm = QuadraticNorm(PowerNorm(), WIDTH)
    norm.eval()(torch.randn(3, 5, WIDTH))
    assert norm.iterations == 0
    norm.train()(torch.randn(3, 5, WIDTH))
    assert norm.iterations == 1


def test_tokens_of_padding_do_not_change_the_statistics() -> None:
    tokens, padding = torch.randn(3, 5, WIDTH), torch.zeros(3, 5, dtype=torch.bool)
    padding[:, 3:] = True
    with_padding, without = (QuadraticNorm(PowerNorm(), WIDTH).train() for _ in range(2))
    with_padding(tokens, ~padding)
    without(tokens[:, :3])
    assert_close(with_padding.running_phi, without.running_phi)


def test_its_gradient_is_not_differentiated_again() -> None:
    tokens = torch.randn(3, 5, WIDTH, requires_grad=True)
    out = QuadraticNorm(PowerNorm(), WIDTH).train()(tokens)
    (gradient,) = torch.autograd.grad(out.square().sum(), tokens, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_in_bf16_statistics_are_of_32_bits() -> None:
    torch.manual_seed(0)
    tokens = 100 * torch.randn(8, 9, WIDTH).bfloat16()
    low, high = (QuadraticNorm(PowerNorm(groups=2), WIDTH).train() for _ in range(2))
    found = low(tokens)
    assert found.dtype == torch.bfloat16
    assert_close(found.float(), high(tokens.float()), rtol=0.02, atol=0.02)
    assert torch.equal(low.running_phi, high.running_phi)


def test_compiled_it_trains_as_before() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 3, WIDTH, requires_grad=True)
    plain, compiled = (QuadraticNorm(PowerNorm(warmup_steps=1), WIDTH).train() for _ in range(2))
    run = torch.compile(compiled, backend="eager")
    for _ in range(3):
        plain(tokens).sum().backward()
        run(tokens).sum().backward()
    assert_close(dict(compiled.named_buffers()), dict(plain.named_buffers()))
    assert compiled.ema_gz.any()
