"""Unified normalisation's state over the steps; its numbers are in the golden vectors."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from app.recipe.students.layers import UnifiedNorm
from worker.students.layers.window_norm import WindowNorm

WIDTH = 6
AT_ONCE = UnifiedNorm(warmup_steps=0, clamp_after=0)


def test_in_evaluation_it_is_a_factor_per_channel() -> None:
    torch.manual_seed(0)
    norm, tokens = WindowNorm(AT_ONCE, WIDTH, axis=-1), torch.randn(64, 9, WIDTH) * torch.arange(1, 7)
    for _ in range(100):
        norm.train()(tokens)
    assert_close(norm.eval()(tokens), norm.train()(tokens), rtol=1e-2, atol=1e-3)
    assert_close(norm.eval()(tokens), tokens * norm.factor)
    assert norm.iterations == 101


def test_images_are_tokens_of_their_pixels() -> None:
    torch.manual_seed(0)
    images = torch.randn(4, WIDTH, 3, 5, requires_grad=True)
    of_images, of_tokens = WindowNorm(AT_ONCE, WIDTH, axis=1).train(), WindowNorm(AT_ONCE, WIDTH, axis=-1).train()
    tokens = images.detach().permute(0, 2, 3, 1).requires_grad_()
    found, expected = of_images(images), of_tokens(tokens)
    assert_close(found, expected.permute(0, 3, 1, 2))
    found.square().sum().backward()
    expected.square().sum().backward()
    assert images.grad is not None
    assert tokens.grad is not None
    assert_close(images.grad, tokens.grad.permute(0, 3, 1, 2))
    assert_close(dict(of_images.named_buffers()), dict(of_tokens.named_buffers()))


def test_an_outlier_does_not_stay_in_the_window() -> None:
    torch.manual_seed(0)
    norm = WindowNorm(AT_ONCE, WIDTH, axis=-1).train()
    for _ in range(8):
        norm(torch.randn(64, WIDTH))
    running = norm.running_var.clone()
    norm(1000 * torch.randn(64, WIDTH))
    assert norm.buffer_x2.max() < 2
    kept = WindowNorm(UnifiedNorm(warmup_steps=0, filter_outliers=False), WIDTH, axis=-1).train()
    for scale in (1, 1, 1, 1, 1000):
        kept(scale * torch.randn(64, WIDTH))
    assert kept.buffer_x2.max() > 1e5
    assert_close(norm.buffer_x2[1], running)


def test_tokens_of_padding_do_not_change_the_statistics() -> None:
    tokens, padding = torch.randn(3, 5, WIDTH), torch.zeros(3, 5, dtype=torch.bool)
    padding[:, 3:] = True
    with_padding, without = (WindowNorm(UnifiedNorm(), WIDTH, axis=-1).train() for _ in range(2))
    with_padding(tokens, ~padding)
    without(tokens[:, :3])
    assert_close(with_padding.buffer_x2, without.buffer_x2)


def test_a_channel_of_zeros_stays_finite() -> None:
    norm = WindowNorm(AT_ONCE, WIDTH, axis=-1).train()
    for _ in range(8):
        tokens = torch.randn(16, WIDTH)
        tokens[:, 0] = 0.0
        tokens.requires_grad_()
        out = norm(tokens)
        out.square().sum().backward()
        assert tokens.grad is not None
        assert tokens.grad.isfinite().all()
    assert all(buffer.isfinite().all() for buffer in norm.buffers())


def test_in_bf16_statistics_are_of_32_bits() -> None:
    torch.manual_seed(0)
    tokens = 100 * torch.randn(8, 9, WIDTH).bfloat16()
    low, high = (WindowNorm(UnifiedNorm(), WIDTH, axis=-1).train() for _ in range(2))
    found = low(tokens)
    assert found.dtype == torch.bfloat16
    assert_close(found.float(), high(tokens.float()), rtol=0.02, atol=0.02)
    assert torch.equal(low.running_var, high.running_var)
