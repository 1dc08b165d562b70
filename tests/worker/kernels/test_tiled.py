"""The tiles of the last layer without a GPU: what they refuse, and what they compile to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.kernels.test_linear import KD, fused, make
from tests.worker.kernels.triton_tools import compiled, pass_under_the_interpreter
from worker.kernels import tiled
from worker.kernels.linear import HiddenTeacher, LogitsTeacher, linear_distillation
from worker.kernels.spec import Divergence, RowSpec

SIDE = (*("*bf16",) * 3, *("i32",) * 4)
TYPES: dict[str, Any] = {
    **dict.fromkeys(("student", "teacher"), SIDE),
    **dict.fromkeys(("statistics", "sums", "scratch"), "*fp32"),
    **dict.fromkeys(("rows", "of_a_split", "ignore_index"), "i32"),
    **{"labels": "*i64", "of_bias": "*bf16"},
}


def test_the_kernels_agree_under_the_interpreter() -> None:
    pass_under_the_interpreter("tests/worker/kernels/interpreted_tiles.py")


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(
    ("name", "gradients", "parked"),
    [("statistics_kernel", "*fp32", 16), ("hidden_kernel", "*fp32", 64), ("weight_kernel", "*bf16", 64)],
)
def test_the_kernels_compile_for_cuda_without_a_gpu_and_keep_to_registers(
    name: str, gradients: str, parked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from worker.kernels import tiled_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sizes = {"N": tiled.ROWS, "V": tiled.COLUMNS, "H": tiled.HIDDEN}
    constants = {**dict.fromkeys(("REVERSE", "HARD", "LABELLED"), True), **sizes}
    found = compiled(
        getattr(tiled_kernels, name),
        {**TYPES, "gradients": gradients},
        constants,
        tmp_path,
        [(side, place) for side in (0, 1) for place in range(6)],
        num_warps=tiled.WARPS,
        num_stages=tiled.STAGES,
    )
    assert found.stack <= parked, "a few numbers may be parked; of a tile's logits a thread has 128 bytes"
    assert "wgmma" in found.ptx, "products go through the tensor cores as Hopper has them"
    assert found.shared <= 227 << 10


def test_a_processor_refuses_tiles_and_goes_without_them() -> None:
    with pytest.raises(ValueError, match="tiled takes a CUDA device"):
        fused(make(), tiled=True)
    assert fused(make()).total.isfinite()


@pytest.mark.parametrize(
    ("spec", "teacher", "options", "message"),
    [
        (RowSpec(Divergence("jsd")), None, {}, "forward-kl and reverse-kl, not jsd"),
        (RowSpec(None, ce_weight=1.0), None, {}, "not none"),
        (RowSpec(Divergence("forward-kl"), 1.0, 1.0, 0.1), None, {}, "labels without smoothing"),
        (KD, None, {"class_weights": torch.ones(11)}, "classes without weights"),
        (KD, LogitsTeacher(torch.zeros(13, 11)), {}, "given by its hidden states"),
        (KD, HiddenTeacher(torch.zeros(13, 7), torch.zeros(11, 7)), {}, "both sides in one dtype"),
    ],
)
def test_what_tiles_do_not_know_is_refused_with_the_reason(
    spec: RowSpec, teacher: Any, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "runs_tiled", lambda hidden: True)
    sides = make()
    with pytest.raises(ValueError, match=message):
        linear_distillation(
            sides.hidden, sides.weight, teacher or sides.teacher, sides.labels, spec, tiled=True, **options
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["forward-kl", "reverse-kl"])
def test_a_gpu_gives_what_chunks_give(kind: Any) -> None:
    torch.manual_seed(0)
    hidden, other = (torch.randn(300, size, device="cuda", dtype=torch.bfloat16) for size in (200, 328))
    weight, theirs = (
        torch.randn(columns, size, device="cuda", dtype=torch.bfloat16) * size**-0.5
        for columns, size in ((5003, 200), (4999, 328))
    )
    labels, ends = torch.randint(4999, (300,), device="cuda"), []
    for one in (True, False):
        leaves = [leaf.clone().requires_grad_() for leaf in (hidden, weight)]
        spec = RowSpec(Divergence(kind, temperature=2.0), 0.7, 0.3)
        loss = linear_distillation(*leaves, HiddenTeacher(other, theirs), labels, spec, tiled=one).total
        ends.append((loss.detach(), torch.autograd.grad(loss, leaves)))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-2, atol=1e-3)
    for ours, chunked in zip(ends[0][1], ends[1][1], strict=True):
        assert torch.nn.functional.cosine_similarity(ours.flatten(), chunked.flatten(), 0) > 0.999
