"""The kernels of norms under Triton's interpreter, compared with the reference in float64.

Triton must be configured before its import, so `test_token_norms.py` runs this file in a separate process.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worker.kernels import norm_kernels, token_norms
from worker.kernels.token_norms import KINDS, NormKind, NormWeights, plain

EPS = 1e-5
EVERY = pytest.mark.parametrize("kind", KINDS)


def drawn(shape: tuple[int, ...], dtype: torch.dtype, mean: float = 0.0) -> list[Tensor]:
    """Both branches, scale and offset, and gradients of the sum and of its norm."""
    generator = torch.Generator().manual_seed(0)
    shapes = [shape, shape, shape[-1:], shape[-1:], shape, shape]
    found = [torch.randn(each, generator=generator) for each in shapes]
    return [(each + mean if number == 0 else each).to(dtype) for number, each in enumerate(found)]


def weights(kind: NormKind, given: list[Tensor]) -> NormWeights:
    return NormWeights(kind, given[2], given[3] if kind == "layer" else None, EPS)


def launched(kind: NormKind, given: list[Tensor]) -> list[Tensor]:
    """Sum, norm, and all gradients by the kernels."""
    leaves = [each.clone().requires_grad_() for each in given[:4]]
    norm = weights(kind, leaves)
    found = token_norms._AddAndNormalise.apply(*leaves[:2], norm.weight, norm.offset, norm.eps, kind)  # type: ignore[no-untyped-call]
    return [*found, *gradients(found, leaves, norm, given[4:])]


def expected(kind: NormKind, given: list[Tensor]) -> list[Tensor]:
    leaves = [each.double().requires_grad_() for each in given[:4]]
    norm = weights(kind, leaves)
    found = plain(*leaves[:2], norm)
    return [*found, *gradients(found, leaves, norm, [each.double() for each in given[4:]])]


def gradients(found: tuple[Tensor, ...], leaves: list[Tensor], norm: NormWeights, given: list[Tensor]) -> list[Tensor]:
    learned = [*leaves[:3], *([] if norm.offset is None else [norm.offset])]
    return list(torch.autograd.grad(found, learned, given))


@EVERY
@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 20), (7, 1), (3, 130)])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_sums_norms_and_gradients_are_those_of_the_reference(
    kind: NormKind, shape: tuple[int, ...], dtype: torch.dtype, within: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norm_kernels, "MOST_PROGRAMS", 2)  # so that a program has several rows
    given = drawn(shape, dtype)
    for ours, theirs in zip(launched(kind, given), expected(kind, given), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, rtol=within, atol=within)


@EVERY
def test_a_branch_in_lower_precision_is_added_to_one_in_float32(kind: NormKind) -> None:
    given = drawn((3, 20), torch.float32)
    given[1] = given[1].bfloat16()
    found, theirs = launched(kind, given), expected(kind, given)
    assert [each.dtype for each in found[:4]] == [torch.float32, torch.float32, torch.float32, torch.bfloat16]
    for number, (ours, other) in enumerate(zip(found, theirs, strict=True)):
        torch.testing.assert_close(ours.double(), other, rtol=1e-2 if number == 3 else 1e-5, atol=1e-5)


@EVERY
def test_rows_far_from_zero_lose_nothing(kind: NormKind) -> None:
    given = drawn((4, 64), torch.float32, mean=1000.0)
    for ours, theirs in zip(launched(kind, given), expected(kind, given), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-3, atol=2e-3)


def test_a_constant_row_of_a_layer_norm_is_its_offset() -> None:
    given = drawn((2, 8), torch.float32)
    given[0], given[1] = torch.full((2, 8), 3.0), torch.zeros(2, 8)
    torch.testing.assert_close(launched("layer", given)[1], given[3].expand(2, 8), rtol=0, atol=0)


@EVERY
def test_squares_beyond_half_precision_are_summed_in_float32(kind: NormKind) -> None:
    given = drawn((3, 32), torch.float16)
    given[0] = given[0] * 1000
    for ours, theirs in zip(launched(kind, given)[:2], expected(kind, given)[:2], strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-2, atol=1e-2)
