"""Norms against the plain formula in float64, and batch norm at its edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from app.recipe.students import layers as spec
from app.recipe.students.layers import (
    IMAGE_NORMS,
    TOKEN_NORMS,
    BatchNorm,
    CrmsNorm,
    GroupNorm,
    L1BatchNorm,
    L1LayerNorm,
    LayerNorm,
    NoNorm,
    NormSpec,
    PowerNorm,
    RmsNorm,
    UnifiedNorm,
)
from worker.optimizers.roles import normalisations
from worker.students.layers import norms
from worker.students.layers.norms import BatchNorm2d

CHANNELS = 6
GROUPED = GroupNorm(groups=3)
PARTIAL = RmsNorm(partial=0.4, eps=1e-2)
OUTSIDE = RmsNorm(eps=1e-2, eps_mode="outside")
IMAGES: list[NormSpec] = [
    *(BatchNorm(), LayerNorm(), GROUPED, RmsNorm(), PARTIAL, OUTSIDE, NoNorm()),
    *(L1BatchNorm(), L1LayerNorm()),
]
TOKENS: list[NormSpec] = [LayerNorm(), RmsNorm(), PARTIAL, OUTSIDE, CrmsNorm(), L1LayerNorm()]
RUNNING: list[NormSpec] = [PowerNorm(), UnifiedNorm()]
"""Norms whose gradients are approximations, tested in files of their own."""
BY_BATCH = BatchNorm | L1BatchNorm
of_kind: dict[str, Any] = {"ids": lambda norm: norm.kind}


def standardised(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True) + epsilon).sqrt()


def reference(norm: NormSpec, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """`x` normalised without scale and offset over `axes`, which belong to one sample or token."""
    if isinstance(norm, NoNorm):
        return x
    if isinstance(norm, RmsNorm):
        averaged = x if norm.partial is None else x.narrow(axes[0], 0, 2)  # 0.4 of 6 channels, rounded down
        squares = averaged.square().mean(axes, keepdim=True)
        return x / ((squares + norm.eps).sqrt() if norm.eps_mode == "inside" else squares.sqrt() + norm.eps)
    if isinstance(norm, CrmsNorm):
        whole = torch.cat([x, -x.sum(-1, keepdim=True)], -1)
        return x / (whole.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    if isinstance(norm, L1BatchNorm | L1LayerNorm):
        axes = (0, 2, 3) if isinstance(norm, L1BatchNorm) else axes
        centred = x - x.mean(axes, keepdim=True)
        return centred / (centred.abs().mean(axes, keepdim=True) + 1e-5)
    if isinstance(norm, BatchNorm):
        return standardised(x, (0, 2, 3), 1e-5)
    if isinstance(norm, GroupNorm):
        return standardised(x.unflatten(1, (norm.groups, -1)), (2, 3, 4), 1e-5).flatten(1, 2)
    return standardised(x, axes, 1e-5)


def drawn(module: nn.Module) -> nn.Module:
    """With a scale and an offset that do something."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, 1.0, 0.5)
    return module


def with_weights(module: nn.Module, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    scale, offset = getattr(module, "weight", None), getattr(module, "bias", None)
    x = x if scale is None else x * scale.view(shape)
    return x if offset is None else x + offset.view(shape)


@pytest.mark.parametrize("norm", IMAGES, **of_kind)
def test_norms_of_images_are_the_formula_with_its_gradients(norm: NormSpec) -> None:
    torch.manual_seed(0)
    module = drawn(norms.IMAGE_NORMS.build(norm, CHANNELS)).double()
    x = torch.randn(4, CHANNELS, 3, 5, dtype=torch.float64, requires_grad=True)
    expected = with_weights(module, reference(norm, x, (1, 2, 3)), (1, -1, 1, 1))
    require_same(module, x, expected)


@pytest.mark.parametrize("norm", TOKENS, **of_kind)
def test_norms_of_tokens_are_the_formula_with_its_gradients(norm: NormSpec) -> None:
    torch.manual_seed(0)
    module = drawn(norms.TOKEN_NORMS.build(norm, CHANNELS)).double()
    x = torch.randn(4, 7, CHANNELS, dtype=torch.float64, requires_grad=True)
    require_same(module, x, with_weights(module, reference(norm, x, (-1,)), (-1,)))


def require_same(module: nn.Module, x: Tensor, expected: Tensor) -> None:
    found, towards = module(x), torch.randn_like(x)
    assert_close(found, expected, rtol=1e-9, atol=1e-9)
    wanted = [x, *module.parameters()]
    ours, theirs = (torch.autograd.grad((y * towards).sum(), wanted) for y in (found, expected))
    assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("norm", IMAGES, **of_kind)
def test_in_bf16_norms_of_images_are_near_those_in_float32(norm: NormSpec) -> None:
    torch.manual_seed(0)
    module = norms.IMAGE_NORMS.build(norm, CHANNELS)
    x = 1000 * torch.randn(4, CHANNELS, 3, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = module(x)
    assert_close(found.float(), module(x.float()), rtol=0.02, atol=0.02)


def test_rms_keeps_a_low_precision_and_does_not_overflow_in_it() -> None:
    x = torch.full((1, 4, 2, 2), 1e4, dtype=torch.float16)
    found = norms.IMAGE_NORMS.build(RmsNorm(), 4).half()(x)
    assert found.dtype == torch.float16
    assert_close(found, torch.ones_like(x))


@pytest.mark.parametrize("norm", [norm for norm in IMAGES if not isinstance(norm, BY_BATCH)], **of_kind)
def test_all_but_batch_norm_normalise_each_sample_alone(norm: NormSpec) -> None:
    module = norms.IMAGE_NORMS.build(norm, CHANNELS).train()
    x = torch.randn(4, CHANNELS, 3, 5)
    assert_close(module(x)[:1], module(x[:1]))


def test_every_kind_of_the_contract_is_built_for_what_it_can_normalise() -> None:
    assert norms.IMAGE_NORMS.kinds == set(IMAGE_NORMS) == {type(norm) for norm in (*IMAGES, UnifiedNorm())}
    assert norms.TOKEN_NORMS.kinds == set(TOKEN_NORMS) == {type(norm) for norm in (*TOKENS, *RUNNING)}
    assert set(spec.NORMS) == {*IMAGE_NORMS, *TOKEN_NORMS}


@pytest.mark.parametrize("norm", [*IMAGES, *TOKENS, *RUNNING], **of_kind)
def test_weights_are_as_many_as_the_contract_has_and_known_to_optimizers(norm: NormSpec) -> None:
    registry = norms.IMAGE_NORMS if "images" in norm.of else norms.TOKEN_NORMS
    module = registry.build(norm, CHANNELS)
    assert {name for name, _ in module.named_buffers()} == set(norm.statistics)
    assert sum(each.numel() for each in module.parameters()) == norm.vectors * CHANNELS
    assert list(normalisations(module)) == ([module] if norm.vectors else [])


def test_padding_is_left_out_of_the_statistics_of_batches_alone() -> None:
    torch.manual_seed(0)
    x, real = torch.randn(3, 5, CHANNELS), torch.arange(5).expand(3, 5) < 3
    for norm in (*TOKENS, *RUNNING):
        whole, cut = (norms.TOKEN_NORMS.build(norm, CHANNELS).train() for _ in range(2))
        found = norms.normalise(whole, x, real)
        assert_close(found[:, :3], norms.normalise(cut, x[:, :3]))
        assert_close(dict(whole.named_buffers()), dict(cut.named_buffers()))


def test_a_row_of_zeros_has_a_gradient_without_nan_if_eps_is_outside_of_the_root() -> None:
    x = torch.zeros(2, CHANNELS, requires_grad=True)
    norms.TOKEN_NORMS.build(OUTSIDE, CHANNELS)(x).sum().backward()
    assert_close(x.grad, torch.full_like(x, 100.0))


def test_batch_norm_of_one_value_uses_and_keeps_the_running_statistics() -> None:
    norm = BatchNorm2d(2).train()
    assert norm.running_mean is not None
    norm.running_mean.fill_(3.0)
    out = norm(torch.full((1, 2, 1, 1), 4.0))
    torch.testing.assert_close(out, torch.full((1, 2, 1, 1), 1.0), rtol=1e-4, atol=1e-4)
    assert norm.running_mean.tolist() == [3.0, 3.0]
    norm(torch.randn(2, 2, 1, 1))
    assert norm.running_mean.tolist() != [3.0, 3.0]


def test_batch_norm_is_torchs_own_otherwise() -> None:
    ours, theirs = BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    images = torch.randn(4, 3, 2, 2)
    assert torch.equal(ours(images), theirs(images))
    assert torch.equal(ours.eval()(images), theirs.eval()(images))
