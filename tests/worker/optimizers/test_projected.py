"""The kernels of AdamP and SGDP without a GPU: when they apply, how tensors are tiled, and their compiled code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.worker.kernels.triton_tools import compiled, pass_under_the_interpreter
from worker.optimizers import AdamPOptimizer, SgdPOptimizer, projected, tables
from worker.optimizers.projected import runs_on_triton
from worker.optimizers.tables import TableRows, layout_of, table_rows_of

CPU = torch.device("cpu")
POINTERS = {
    **dict.fromkeys(("layout", "addresses"), "*i64"),
    **dict.fromkeys(("sums", "decisions"), "*fp32"),
    **dict.fromkeys(("count", "total"), "i32"),
    **{"owners": "*i32", "rule": ("fp32",) * 6},
}


def test_the_kernels_agree_under_the_interpreter() -> None:
    pass_under_the_interpreter("tests/worker/optimizers/interpreted.py")


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(
    ("rounded", "aligned", "late"), [(False, True, False), (True, False, False), (False, True, True)]
)
def test_the_kernels_compile_for_cuda_without_a_gpu_and_keep_to_registers(
    rounded: bool, aligned: bool, late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from triton import language as tl

    from worker.optimizers import projected_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    cut = kernels.cut_of(torch.bfloat16 if rounded else torch.float32, aligned)
    assert cut["TYPE"] == (tl.bfloat16 if rounded else tl.float32)
    kinds = {"ADAM": True, "NESTEROV": True, "ROUNDED": rounded, "LATE": late}
    every = [(kernels.step_kernel, {**cut, **kinds})]
    if not late:
        every += [(kernels.sums_kernel, cut), (kernels.decide_kernel, {"ADAM": True, "D": kernels.ROWS_OF_A_DECISION})]
    for kernel, constants in every:
        found = compiled(kernel, POINTERS, constants, tmp_path, num_warps=kernels.WARPS)
        assert found.stack == 0
        if aligned and kernel is not kernels.decide_kernel:
            assert "ld.global.v4" in found.ptx, "four numbers are read at a time"


@pytest.mark.parametrize(
    ("tensor", "seen"),
    [
        (torch.zeros(4, 3, 2, 2), TableRows(4, 12, True)),
        (torch.zeros(4, 3, 2, 2).contiguous(memory_format=torch.channels_last), TableRows(4, 12, True)),
        (torch.zeros(5), TableRows(1, 5, False)),
        (torch.zeros(()), TableRows(1, 1, False)),
        (torch.zeros(3, 5).t(), None),
        (torch.zeros(4, 6)[:, :3], None),
        (torch.zeros(0, 2), None),
    ],
)
def test_a_tensor_is_seen_in_rows_where_these_lie_in_one_piece(tensor: Tensor, seen: TableRows | None) -> None:
    assert table_rows_of(tensor) == seen


def test_tiles_cover_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK", 64)
    monkeypatch.setattr(tables, "PIECE", 128)
    tensors = (TableRows(33, 8, True), TableRows(1, 300, False), TableRows(5, 32, True), TableRows(2, 129, True))
    assert [each.together for each in tensors] == [16, 1, 4, 1]
    layout = layout_of(tensors, CPU)
    assert layout.owners.tolist() == [0] * 3 + [1] * 3 + [2] * 2 + [3] * 4
    assert layout.sums == 33 + 3 + 5 + 4
    first_tiles, first_sums = layout.table[0].tolist(), layout.table[5].tolist()
    assert first_tiles == [0, 3, 6, 8]
    assert first_sums == [0, 33, 36, 41]
    layout_of.cache_clear()


def test_a_processor_goes_without_the_kernels() -> None:
    assert not runs_on_triton(nn.Parameter(torch.zeros(2, 2)))


@pytest.mark.parametrize("optimizer", [AdamPOptimizer, SgdPOptimizer])
def test_what_the_kernels_cannot_take_goes_through_lists(optimizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(*_: object) -> None:
        raise AssertionError("it was to be left alone")

    monkeypatch.setattr(projected, "runs_on_triton", lambda parameter: True)
    monkeypatch.setattr(projected.Projected, "_launch", launch)
    weight = nn.Parameter(torch.randn(3, 5).t())
    weight.grad = torch.randn(5, 3)
    before = weight.detach().clone()
    optimizer([weight], lr=0.1).step()
    assert not torch.equal(weight.detach(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", [AdamPOptimizer, SgdPOptimizer])
def test_a_gpu_takes_the_steps_of_the_lists(
    optimizer: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for quick in (True, False):
        torch.manual_seed(0)
        shapes = [(64, 3, 7, 7), (64,), (256, 64, 1, 1), (1000, 2048), (2, 40_000), (), (512, 4608)]
        weights = [nn.Parameter(torch.randn(shape, device="cuda", dtype=dtype)) for shape in shapes]
        made = optimizer(weights, lr=0.01, weight_decay=0.1)
        for _ in range(3):
            for weight in weights:
                rows = weight.detach().float().reshape(len(weight) if weight.ndim else 1, -1)
                gradient = torch.randn_like(rows)
                along = (gradient * rows).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True)
                weight.grad = (gradient - along * rows).view_as(weight).to(dtype)
            if not quick:
                monkeypatch.setattr(projected, "runs_on_triton", lambda parameter: False)
            made.step()
        ends.append([state for _, state in sorted(made.state_dict()["state"].items())])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)
