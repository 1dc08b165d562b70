"""Attention against the plain formula in float64 (weights for every pair of tokens), its masks, precision and cost. The
kinds that authors' vectors exist for are compared with those in `tests/golden`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from app.recipe.students import layers as spec
from app.recipe.students.layers import (
    AttentionShape,
    AttentionSpec,
    LinearAttention,
    NalaAttention,
    SigmoidAttention,
    SoftAttention,
    SoftmaxAttention,
    SoftplusAttention,
)
from worker.students.layers.attentions import ATTENTIONS, AttentionMask, SelfAttention
from worker.students.layers.attentions.linear import LinearSelfAttention
from worker.students.layers.attentions.soft import RIDGE, gaussian_weights, normalised_inverse, ridge_inverse

WIDTH, HEADS, TOKENS = 12, 3, 5
SHAPE = AttentionShape(TOKENS, WIDTH, HEADS, (2, 2))
"""Four patches after one other token."""


def softmax_weights(query: Tensor, key: Tensor) -> Tensor:
    return (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)


def linear_weights(query: Tensor, key: Tensor) -> Tensor:
    positive = [torch.where(x > 0, x + 1, x.exp()) for x in (query, key)]
    products = positive[0] @ positive[1].transpose(-2, -1)
    return products / products.sum(-1, keepdim=True)


def sigmoid_weights(query: Tensor, key: Tensor) -> Tensor:
    products = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).exp()
    return products / (products + TOKENS)


def softplus_weights(query: Tensor, key: Tensor) -> Tensor:
    count, size = torch.tensor(float(key.shape[-2])), torch.tensor(float(query.shape[-1]))
    positive = (1 + (query @ key.transpose(-2, -1) * size.log() / size.sqrt() * count.log()).exp()).log()
    relative = count * positive / positive.sum(-1, keepdim=True) - (count > 1).double()
    sharp = relative.clamp(min=0) ** 3
    return sharp / sharp.sum(-1, keepdim=True)


WEIGHTS: dict[AttentionSpec, Callable[[Tensor, Tensor], Tensor]] = {
    SoftmaxAttention(): softmax_weights,
    LinearAttention(): linear_weights,
    SigmoidAttention(): sigmoid_weights,
    SoftplusAttention(): softplus_weights,
}
SPECS = [*WEIGHTS, SoftplusAttention(power=None), SoftAttention(), SoftAttention(normalised=True), NalaAttention()]
of_pairs = pytest.mark.parametrize("attention", WEIGHTS, ids=lambda attention: attention.kind)
each = pytest.mark.parametrize("attention", SPECS, ids=str)
PADDING = torch.tensor([[True] * TOKENS, [True] * 3 + [False] * 2])


def reference(module: SelfAttention, x: Tensor, weights: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """One head after the other."""
    qkv = module.get_submodule("qkv")
    query, key, value = qkv(x).split(WIDTH, dim=-1)
    size, heads = WIDTH // HEADS, []
    for head in range(HEADS):
        mine = slice(head * size, (head + 1) * size)
        heads.append(weights(query[..., mine], key[..., mine]) @ value[..., mine])
    return torch.cat(heads, dim=-1) @ module.out.weight.T + module.out.bias


def built(attention: AttentionSpec, shape: AttentionShape = SHAPE) -> SelfAttention:
    torch.manual_seed(0)
    module = ATTENTIONS.build(attention, shape)
    assert isinstance(module, SelfAttention)
    return module


def with_mask(mask: str) -> list[AttentionSpec]:
    return [attention for attention in SPECS if mask in attention.masks]


@of_pairs
def test_attention_is_its_formula_with_its_gradients(attention: AttentionSpec) -> None:
    module = built(attention).double()
    x = 3 * torch.randn(2, TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    found, expected, towards = module(x), reference(module, x, WEIGHTS[attention]), torch.randn_like(x)
    assert_close(found, expected, rtol=1e-5, atol=1e-6)
    wanted = [x, *module.parameters()]
    ours, theirs = (torch.autograd.grad((y * towards).sum(), wanted) for y in (found, expected))
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", [each for each in WEIGHTS if each.kind != "sigmoid"], ids=str)
def test_a_single_token_takes_its_own_value(attention: AttentionSpec) -> None:
    module = built(attention)
    x = torch.randn(2, 1, WIDTH)
    value = module.get_submodule("qkv")(x)[..., 2 * WIDTH :]
    assert_close(module(x), module.out(value), rtol=1e-4, atol=1e-5)


@of_pairs
def test_the_order_of_tokens_does_not_matter(attention: AttentionSpec) -> None:
    module = built(attention)
    x = torch.randn(2, TOKENS, WIDTH)
    assert_close(module(x.flip(1)), module(x).flip(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", [SoftAttention(), NalaAttention()], ids=str)
def test_the_places_of_patches_matter_to_attention_on_a_grid(attention: AttentionSpec) -> None:
    module = built(attention)
    x = torch.randn(2, TOKENS, WIDTH)
    assert (module(x.flip(1)) - module(x).flip(1)).abs().max() > 1e-3


@pytest.mark.parametrize("attention", with_mask("padding"), ids=str)
def test_padding_changes_nothing(attention: AttentionSpec) -> None:
    module = built(attention)
    x = torch.randn(2, TOKENS, WIDTH)
    found = module(x, AttentionMask(PADDING))
    assert_close(found[1:, :3], module(x[1:, :3]), rtol=1e-4, atol=1e-5)
    assert_close(found[:1], module(x[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", with_mask("causal"), ids=str)
@pytest.mark.parametrize(
    "tokens", [None, torch.ones(2, TOKENS, dtype=torch.bool)], ids=["causal", "causal and padding"]
)
def test_later_tokens_change_nothing(attention: AttentionSpec, tokens: Tensor | None) -> None:
    module = built(attention)
    x = torch.randn(2, TOKENS, WIDTH)
    found = module(x, AttentionMask(tokens, causal=True))
    for seen in range(1, TOKENS + 1):
        assert_close(found[:, seen - 1], module(x[:, :seen])[:, -1], rtol=1e-4, atol=1e-5)


def test_queries_fewer_than_keys_are_the_last_ones_and_a_window_bounds_both_sides() -> None:
    seen = AttentionMask(causal=True).visible(2, 4, torch.device("cpu"))
    assert seen is not None
    assert seen[0, 0].int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    seen = AttentionMask(window=(1, 0)).visible(3, 3, torch.device("cpu"))
    assert seen is not None
    assert seen[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]


@each
def test_in_bf16_it_is_near_float32_and_huge_numbers_stay_finite(attention: AttentionSpec) -> None:
    module = built(attention)
    x = torch.randn(2, TOKENS, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(x).float()
        huge = (1e4 * x).requires_grad_()
        far = module(huge)
        far.square().mean().backward()
    # re-weighting by a third power amplifies what the rounding of products changed
    within = 0.2 if isinstance(attention, SoftplusAttention) and attention.power else 0.05
    assert_close(found, module(x), rtol=within, atol=within)
    assert far.isfinite().all()
    assert huge.grad is not None
    assert huge.grad.isfinite().all()


@each
def test_equal_tokens_and_tokens_of_zeros_have_finite_gradients(attention: AttentionSpec) -> None:
    module = built(attention)
    for x in (torch.zeros(2, TOKENS, WIDTH), torch.ones(2, TOKENS, WIDTH)):
        x.requires_grad_()
        module.zero_grad()
        module(x).square().sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in module.parameters())


def test_linear_attention_whose_weights_all_vanish_gives_nothing_and_no_nan() -> None:
    module = built(LinearAttention())
    far = torch.full((1, 1, TOKENS, 4), -1e4, requires_grad=True)
    found = module.attend(far, far, torch.randn(1, 1, TOKENS, 4))
    found.sum().backward()
    assert not found.any()
    assert far.grad is not None
    assert far.grad.isfinite().all()


def test_softplus_attention_with_equal_keys_is_their_mean() -> None:
    value = torch.randn(1, 1, TOKENS, 4)
    found = built(SoftplusAttention()).attend(torch.randn(1, 1, TOKENS, 4), torch.ones(1, 1, TOKENS, 4), value)
    assert_close(found, value.mean(2, keepdim=True).expand_as(value))


@pytest.mark.parametrize("invert", [ridge_inverse, normalised_inverse])
def test_newtons_iteration_finds_the_inverse_and_its_gradient(invert: Callable[[Tensor, int], Tensor]) -> None:
    marks = 2 * torch.randn(3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix, towards = gaussian_weights(marks, marks).requires_grad_(), torch.randn(3, 6, 6, dtype=torch.float64)
    if invert is ridge_inverse:
        expected = (matrix + RIDGE * torch.eye(6, dtype=torch.float64)).inverse()
    else:
        roots = matrix.sum(-1).rsqrt()
        expected = roots.unsqueeze(-1) * matrix.inverse() * roots.unsqueeze(-2)
    found = invert(matrix, 60)
    assert_close(found, expected)
    ours, theirs = (torch.autograd.grad((y * towards).sum(), matrix) for y in (found, expected))
    assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@each
def test_operations_are_those_that_torch_counts(attention: AttentionSpec) -> None:
    module = built(attention)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        module(torch.randn(1, TOKENS, WIDTH))
    maps = 2 * TOKENS * WIDTH**2 * (len(attention.projections) + 1)
    assert counter.get_total_flops() == attention.cost(SHAPE).flops + maps


def test_linear_kinds_grow_with_the_tokens_and_others_with_their_square() -> None:
    short, long = (AttentionShape(8 * side, 64, 4, (8, side)) for side in (512, 1024))
    growth = {each.kind: each.cost(long).flops / each.cost(short).flops for each in SPECS}
    assert growth["linear"] == growth["nala"] == 2
    assert all(growth[kind] == 4 for kind in ("softmax", "sigmoid", "softplus"))


def test_every_kind_of_the_contract_is_built() -> None:
    assert ATTENTIONS.kinds == set(spec.ATTENTIONS) == {type(attention) for attention in SPECS}
    assert isinstance(built(LinearAttention()), LinearSelfAttention)
