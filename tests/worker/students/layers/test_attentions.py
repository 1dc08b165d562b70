"""Attention against the plain formula in float64: weights for every pair of tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from app.recipe.students import layers as spec
from app.recipe.students.layers import AttentionSpec, LinearAttention, SoftmaxAttention
from worker.students.layers.attentions import ATTENTIONS, LinearSelfAttention, SelfAttention

WIDTH, HEADS, TOKENS = 12, 3, 5


def softmax_weights(query: Tensor, key: Tensor) -> Tensor:
    return (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)


def linear_weights(query: Tensor, key: Tensor) -> Tensor:
    positive = [torch.where(x > 0, x + 1, x.exp()) for x in (query, key)]
    products = positive[0] @ positive[1].transpose(-2, -1)
    return products / products.sum(-1, keepdim=True)


WEIGHTS: dict[AttentionSpec, Callable[[Tensor, Tensor], Tensor]] = {
    SoftmaxAttention(): softmax_weights,
    LinearAttention(): linear_weights,
}
each = pytest.mark.parametrize("attention", WEIGHTS, ids=lambda attention: attention.kind)


def reference(module: SelfAttention, x: Tensor, weights: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """One head after the other."""
    query, key, value = (x @ module.qkv.weight.T + module.qkv.bias).split(WIDTH, dim=-1)
    size, heads = WIDTH // HEADS, []
    for head in range(HEADS):
        mine = slice(head * size, (head + 1) * size)
        heads.append(weights(query[..., mine], key[..., mine]) @ value[..., mine])
    return torch.cat(heads, dim=-1) @ module.out.weight.T + module.out.bias


def built(attention: AttentionSpec) -> SelfAttention:
    torch.manual_seed(0)
    module = ATTENTIONS.build(attention, WIDTH, HEADS)
    assert isinstance(module, SelfAttention)
    return module


@each
def test_attention_is_its_formula_with_its_gradients(attention: AttentionSpec) -> None:
    module = built(attention).double()
    x = 3 * torch.randn(2, TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    found, expected, towards = module(x), reference(module, x, WEIGHTS[attention]), torch.randn_like(x)
    assert_close(found, expected, rtol=1e-5, atol=1e-6)
    wanted = [x, *module.parameters()]
    ours, theirs = (torch.autograd.grad((y * towards).sum(), wanted) for y in (found, expected))
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@each
def test_a_single_token_takes_its_own_value(attention: AttentionSpec) -> None:
    module = built(attention)
    x = torch.randn(2, 1, WIDTH)
    assert_close(module(x), module.out(module.qkv(x)[..., 2 * WIDTH :]), rtol=1e-4, atol=1e-5)


@each
def test_the_order_of_tokens_does_not_matter(attention: AttentionSpec) -> None:
    module = built(attention)
    x = torch.randn(2, TOKENS, WIDTH)
    assert_close(module(x.flip(1)), module(x).flip(1), rtol=1e-4, atol=1e-5)


@each
def test_in_bf16_it_is_near_float32_and_huge_numbers_stay_finite(attention: AttentionSpec) -> None:
    module = built(attention)
    x = torch.randn(2, TOKENS, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(module(x).float(), module(x.float()).float(), rtol=0.05, atol=0.05)
        huge = (1e4 * x).requires_grad_()
        found = module(huge)
        found.square().mean().backward()
    assert found.isfinite().all()
    assert huge.grad is not None
    assert huge.grad.isfinite().all()


def test_linear_attention_whose_weights_all_vanish_gives_nothing_and_no_nan() -> None:
    module = built(LinearAttention())
    far = torch.full((1, 1, TOKENS, 4), -1e4, requires_grad=True)
    found = module.attend(far, far, torch.randn(1, 1, TOKENS, 4))
    found.sum().backward()
    assert not found.any()
    assert far.grad is not None
    assert far.grad.isfinite().all()


@each
def test_operations_are_those_that_torch_counts(attention: AttentionSpec) -> None:
    module = built(attention)
    heads = [torch.randn(1, HEADS, TOKENS, WIDTH // HEADS) for _ in range(3)]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        module.attend(*heads)
    assert counter.get_total_flops() == attention.flops(TOKENS, WIDTH, HEADS)


def test_linear_attention_grows_with_the_tokens_alone() -> None:
    assert LinearAttention().flops(200, 64, 4) == 2 * LinearAttention().flops(100, 64, 4)
    assert SoftmaxAttention().flops(200, 64, 4) == 4 * SoftmaxAttention().flops(100, 64, 4)


def test_every_kind_of_the_contract_is_built() -> None:
    assert ATTENTIONS.kinds == set(spec.ATTENTIONS) == {type(attention) for attention in WEIGHTS}
    assert isinstance(built(LinearAttention()), LinearSelfAttention)
