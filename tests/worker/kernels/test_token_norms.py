"""Norms of sums: their kernels under Triton's interpreter, and on a GPU if there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from app.recipe.students.layers import CrmsNorm, LayerNorm, NormSpec, RmsNorm
from tests.worker.kernels.triton_tools import compiled, pass_under_the_interpreter
from worker.kernels.token_norms import KINDS, NormKind, NormWeights, add_and_normalise, plain
from worker.students.layers.norms import TOKEN_NORMS, fused_weights

SPECS: dict[NormKind, NormSpec] = {"layer": LayerNorm(), "rms": RmsNorm(), "crms": CrmsNorm()}


def test_the_kernels_agree_under_the_interpreter() -> None:
    pass_under_the_interpreter("tests/worker/kernels/interpreted_norms.py")


POINTERS = {
    **dict.fromkeys(("x", "added", "total", "out", "given", "of_total", "grad"), "*bf16"),
    **dict.fromkeys(("weight", "offset", "means", "scales", "of_weight", "of_offset"), "*fp32"),
    **{"eps": "fp32", "rows": "i32"},
}


@pytest.mark.parametrize("name", ["_forward", "_backward"])
@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_the_kernels_are_compiled_for_a_gpu_without_spilling(tmp_path: Path, name: str, kind: int) -> None:
    pytest.importorskip("triton")
    from worker.kernels import norm_kernels

    sizes = {"D": 1024, "BLOCK": 1024, "KIND": kind, "ADDS": True}
    assert compiled(getattr(norm_kernels, name), POINTERS, sizes, tmp_path).stack <= 16


def norm_of(kind: NormKind, width: int) -> nn.Module:
    """A norm with random weights."""
    norm = TOKEN_NORMS.build(SPECS[kind], width)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_module(kind: NormKind) -> None:
    norm, (x, added) = norm_of(kind, 12).double(), torch.randn(2, 3, 5, 12, dtype=torch.float64)
    weights = fused_weights(norm)
    assert weights is not None
    total, normal = plain(x, added, weights)
    torch.testing.assert_close(total, x + added)
    torch.testing.assert_close(normal, norm(x + added))


@pytest.mark.parametrize("spec", [RmsNorm(eps_mode="outside"), RmsNorm(partial=0.5)])
def test_other_forms_have_no_kernel(spec: NormSpec) -> None:
    assert fused_weights(TOKEN_NORMS.build(spec, 8)) is None


def test_a_norm_whose_output_is_recorded_has_no_kernel() -> None:
    norm = norm_of("rms", 8)
    norm.register_forward_hook(lambda *_: None)
    assert fused_weights(norm) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("width", [24, 768, 5000])
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_it_is_the_reference(dtype: torch.dtype, within: float, width: int, kind: NormKind) -> None:
    torch.manual_seed(0)
    given = [torch.randn(4, 300, width, device="cuda", dtype=dtype, requires_grad=True) for _ in range(2)]
    scale, shift = (torch.randn(width, device="cuda", requires_grad=True) for _ in range(2))
    offset = shift if kind == "layer" else None
    found = add_and_normalise(*given, NormWeights(kind, scale, offset, 1e-5))
    towards = [torch.randn_like(each) for each in found]
    learned: list[Tensor] = [*given, scale, *([] if offset is None else [offset])]
    wide = [each.detach().double().requires_grad_() for each in learned]
    theirs = plain(*wide[:2], NormWeights(kind, wide[2], wide[3] if kind == "layer" else None, 1e-5))
    for ours, other in zip(found, theirs, strict=True):
        torch.testing.assert_close(ours.double(), other, rtol=within, atol=within)
    ours = torch.autograd.grad(found, learned, towards)
    for one, other in zip(ours, torch.autograd.grad(theirs, wide, [each.double() for each in towards]), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=10 * within, atol=10 * within)
