"""Sigmoid attention: its kernels under Triton's interpreter, and on a GPU if there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.worker.kernels.triton_tools import compiled, pass_under_the_interpreter
from worker.kernels.sigmoid_attention import AttentionMask, plain, sigmoid_attention


def test_the_kernels_agree_under_the_interpreter() -> None:
    pass_under_the_interpreter("tests/worker/kernels/interpreted_sigmoid.py")


TYPES = {
    **dict.fromkeys(("q", "k", "v", "given", "out", "grad", "grad_k", "grad_v"), "*bf16"),
    "tokens": "*i8",
    **dict.fromkeys(("before", "after", "heads", "groups", "q_len", "k_len"), "i32"),
}


@pytest.mark.parametrize("name", ["_forward", "_backward_queries", "_backward_keys"])
@pytest.mark.parametrize("size", [64, 128])
def test_the_kernels_are_compiled_for_a_gpu_without_spilling(tmp_path: Path, name: str, size: int) -> None:
    pytest.importorskip("triton")
    from worker.kernels import sigmoid_kernels

    sizes = {"SIZE": size, "D": size, "M": sigmoid_kernels.query_block(size), "B": sigmoid_kernels.KEYS, "PADDED": True}
    found = compiled(getattr(sigmoid_kernels, name), TYPES, sizes, tmp_path)
    assert "mma" in found.ptx, "products are those of the tensor cores"
    assert found.stack <= 16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("size", [8, 64, 128])
def test_on_a_gpu_it_is_the_reference(dtype: torch.dtype, within: float, size: int) -> None:
    torch.manual_seed(0)
    shapes = [(2, 4, 300, size), *[(2, 2, 300, size)] * 2]
    given = [torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for shape in shapes]
    tokens = torch.arange(300, device="cuda") < torch.tensor([[300], [130]], device="cuda")
    for mask in (AttentionMask(), AttentionMask(causal=True), AttentionMask(tokens, causal=True, window=(70, 0))):
        found = sigmoid_attention(*given, -5.0, mask)
        towards = torch.randn_like(found)
        wide = [each.detach().double().requires_grad_() for each in given]
        theirs = plain(*wide, -5.0, mask)
        torch.testing.assert_close(found.double(), theirs, rtol=within, atol=within)
        ours = torch.autograd.grad(found, given, towards)
        for one, other in zip(ours, torch.autograd.grad(theirs, wide, towards.double()), strict=True):
            torch.testing.assert_close(one.double(), other, rtol=within, atol=within)
