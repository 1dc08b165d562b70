"""The kernels of sigmoid attention under Triton's interpreter, compared with the reference in float64.

Triton must be configured before its import, so `test_sigmoid_attention.py` runs this file in a separate process. The
interpreter has no products in bfloat16.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.golden import HERE, read_cases
from worker.kernels import sigmoid_attention, sigmoid_kernels
from worker.kernels.sigmoid_attention import AttentionMask, plain

BIAS = -1.5


class Sizes(NamedTuple):
    heads: int = 2
    shared: int = 2
    queries: int = 20
    keys: int = 20
    size: int = 4


PADDING = torch.arange(20) < torch.tensor([[20], [7], [0]])
CASES: dict[str, tuple[Sizes, AttentionMask]] = {
    "all": (Sizes(), AttentionMask()),
    "causal": (Sizes(size=16), AttentionMask(causal=True)),
    "window": (Sizes(queries=35, keys=35), AttentionMask(window=(5, 2))),
    "causal window of shared keys": (Sizes(heads=4, queries=35, keys=35), AttentionMask(causal=True, window=(18, 3))),
    "later queries": (Sizes(queries=3, keys=20, size=20), AttentionMask(causal=True)),
    "padding": (Sizes(heads=3, shared=1), AttentionMask(PADDING)),
    "causal padding": (Sizes(heads=2, shared=1, queries=17), AttentionMask(PADDING, causal=True)),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of queries and of keys, the last with a tail."""
    for name in ("QUERIES", "KEYS"):
        monkeypatch.setattr(sigmoid_kernels, name, 16)


def drawn(sizes: Sizes, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values and a gradient of the outputs."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, sizes.heads, sizes.queries, sizes.size), *[(3, sizes.shared, sizes.keys, sizes.size)] * 2]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in (*shapes, shapes[0])]


def launched(given: list[Tensor], bias: float, mask: AttentionMask) -> list[Tensor]:
    """Outputs and gradients of queries, keys and values by the kernels."""
    leaves = [each.clone().requires_grad_() for each in given[:3]]
    found = sigmoid_attention._SigmoidAttention.apply(*leaves, bias, mask)  # type: ignore[no-untyped-call]
    return [found.detach(), *torch.autograd.grad(found, leaves, given[3])]


def expected(given: list[Tensor], bias: float, mask: AttentionMask) -> list[Tensor]:
    leaves = [each.double().requires_grad_() for each in given[:3]]
    found = plain(*leaves, bias, mask)
    return [found.detach(), *torch.autograd.grad(found, leaves, given[3].double())]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.float16, 1e-2)])
def test_outputs_and_gradients_are_those_of_the_reference(name: str, dtype: torch.dtype, within: float) -> None:
    sizes, mask = CASES[name]
    given = drawn(sizes, dtype)
    for ours, theirs in zip(launched(given, BIAS, mask), expected(given, BIAS, mask), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=within, atol=within)


def test_logits_of_ten_thousand_stay_finite_and_right() -> None:
    given = drawn(Sizes(), torch.float32)
    given[0] = given[0] * 1e4
    for ours, theirs in zip(
        launched(given, BIAS, AttentionMask()), expected(given, BIAS, AttentionMask()), strict=True
    ):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-3)


def test_the_authors_numbers_hold() -> None:
    for case in read_cases(HERE / "sigmoid_attention.npz"):
        if "query_mask" not in case.inputs:
            given = [case.inputs[name].transpose(1, 2).float() for name in ("q", "k", "v", "cotangent")]
            window = None if case.hyper["window"][0] < 0 else tuple(case.hyper["window"])
            found = launched(given, case.hyper["sigmoid_bias"], AttentionMask(None, case.hyper["causal"], window))
            for ours, name in zip(found, ("out", "grad_q", "grad_k", "grad_v"), strict=True):
                wanted = case.outputs[name].transpose(1, 2).float()
                torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
