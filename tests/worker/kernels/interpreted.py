"""The row kernel under Triton's interpreter, compared with the references in float64.

Triton must be configured before its import, so `test_rows.py` runs this file in a separate process. A launch takes
half a second here: few rows, one or two blocks of columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.golden import HERE
from tests.worker.kernels.samples import KINDS, batch_of, objective_of, only_the_label_is_offered
from worker.kernels import rows, sparse_kernels
from worker.kernels import sparse as sparse_module
from worker.kernels.row_kernels import launches
from worker.kernels.row_kernels.logits import log_sum
from worker.kernels.rows import RowInputs, plain, row_loss
from worker.kernels.sparse import TopKTeacher
from worker.kernels.spec import Divergence, DivergenceKind, RowSpec
from worker.kernels.top_k import TopK
from worker.tensors import IGNORED

GOLDEN = HERE / "two_pass_softmax.npz"
GOLDEN_CASES = ("basic", "overflow_in_naive", "underflow_in_naive", "huge_range", "short", "equal", "long")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Most rows of these tests take two blocks of columns, the second with a tail."""
    for module in (launches, sparse_kernels):
        monkeypatch.setattr(module, "MOST_COLUMNS", 16)
        monkeypatch.setattr(module, "LOGITS_OF_A_WARP", 16)
    with np.errstate(all="ignore"):
        yield


def launched(inputs: RowInputs, spec: RowSpec, three_passes: bool = False) -> list[Tensor]:
    """Divergence, cross-entropy and gradient by the kernel."""
    ours = inputs._replace(student=inputs.student.clone())
    return [*launches.launch(ours, spec, True, three_passes), ours.student]


def expected(inputs: RowInputs, spec: RowSpec) -> list[Tensor]:
    """The same by the references in float64, in float32."""
    teacher = None if inputs.teacher is None else inputs.teacher.double()
    theirs = inputs._replace(student=inputs.student.double(), teacher=teacher)
    return [part.float() for part in (*plain(theirs, spec, True), theirs.student)]


def assert_same(inputs: RowInputs, spec: RowSpec, rtol: float = 1e-5, atol: float = 1e-5, **settings: Any) -> None:
    for ours, theirs in zip(launched(inputs, spec, **settings), expected(inputs, spec), strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=rtol, atol=atol)


@st.composite
def problems(draw: st.DrawFn) -> tuple[RowInputs, dict[str, Any], dict[str, Any]]:
    """RowInputs, settings of the divergence, settings of the rest."""
    seed, rows = draw(st.integers(0, 1 << 16)), draw(st.integers(1, 5))
    student, teacher = draw(st.integers(3, 20)), draw(st.integers(3, 20))
    inputs = batch_of(rows, student, teacher, seed, masked=draw(st.booleans()))
    divergence = {
        "temperature": draw(st.sampled_from([1.0, 0.7, 3.0])),
        "beta": draw(st.sampled_from([0.0, 0.3, 1.0])),
        "skew": draw(st.sampled_from([0.0, 0.1])),
        "centered": draw(st.booleans()),
    }
    return inputs, divergence, {"ce_weight": draw(st.sampled_from([0.0, 0.5])), "label_smoothing": 0.1}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=problems())
def test_every_divergence_equals_its_reference(
    kind: DivergenceKind, problem: tuple[RowInputs, dict[str, Any], dict[str, Any]]
) -> None:
    inputs, divergence, rest = problem
    assert_same(inputs, RowSpec(Divergence(kind, **divergence), 0.7, **rest))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_ten_thousand_stay_finite_and_right(kind: DivergenceKind) -> None:
    inputs = batch_of(3, 12, 12, seed=5, masked=False)
    signs = torch.randint(-1, 2, (2, 3, 12), generator=torch.Generator().manual_seed(1)) * 1e4
    inputs = inputs._replace(student=signs[0] + inputs.student, teacher=signs[1] + inputs.teacher)
    assert all(part.isfinite().all() for part in launched(inputs, RowSpec(Divergence(kind), 1.0, 0.5)))
    assert_same(inputs, RowSpec(Divergence(kind), 1.0, 0.5), rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_constant_rows_and_rows_of_two_columns_are_right(kind: DivergenceKind) -> None:
    inputs = batch_of(4, 12, 12, seed=13, masked=False)
    assert inputs.teacher is not None
    assert inputs.labels is not None
    inputs.student[0], inputs.teacher[0] = 7.0, -3.0
    inputs.student[2], inputs.teacher[3] = 0.0, 1e4
    inputs.labels[2:] = 3
    inputs.student[3, :] = inputs.teacher[2, :] = -torch.inf
    inputs.student[3, 3:5], inputs.teacher[2, 3:5] = 2.0, torch.tensor([-5.0, 4.0])
    assert_same(inputs, RowSpec(Divergence(kind, temperature=2.0), 1.0, 0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_offer_the_label_alone_are_right(kind: DivergenceKind) -> None:
    assert_same(only_the_label_is_offered(), RowSpec(Divergence(kind, temperature=2.0), 0.7, 0.5))


@pytest.mark.parametrize("kind", ["nkd", "dkd"])
def test_rows_of_one_class_have_no_other_part(kind: DivergenceKind) -> None:
    inputs = batch_of(3, 4, 4, seed=17, masked=False)
    assert inputs.teacher is not None
    one = RowInputs(inputs.student[:, :1], inputs.teacher[:, :1], torch.zeros(3, dtype=torch.int64), None)
    assert_same(one, RowSpec(Divergence(kind), 0.7))
    assert all(part.abs().max() < 1e-6 for part in launched(one, RowSpec(Divergence(kind))))


@pytest.mark.parametrize("kind", ["nkd", "dkd"])
def test_a_label_that_both_sides_mask_counts_for_nothing(kind: DivergenceKind) -> None:
    inputs = batch_of(2, 6, 6, seed=18, masked=False)
    assert inputs.teacher is not None
    inputs.student[0, 3] = inputs.teacher[0, 3] = -torch.inf
    inputs = inputs._replace(labels=torch.full((2,), 3))
    assert all(part.isfinite().all() for part in launched(inputs, RowSpec(Divergence(kind))))
    assert_same(inputs, RowSpec(Divergence(kind, temperature=2.0)))


@pytest.mark.parametrize("kind", ["forward-kl", "reverse-kl", "dkd"])
def test_a_large_vocabulary_goes_through_in_full_blocks(kind: DivergenceKind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "MOST_COLUMNS", 1 << 16)
    monkeypatch.setattr(launches, "LOGITS_OF_A_WARP", 1 << 12)
    inputs = batch_of(2, 262_144, 262_100, seed=14)
    assert_same(inputs, RowSpec(Divergence(kind), 1.0, 0.5))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "nkd"])
def test_a_student_that_equals_its_teacher_costs_nothing_and_learns_nothing(kind: DivergenceKind) -> None:
    inputs = batch_of(3, 12, 12, seed=6, masked=False)
    inputs = inputs._replace(teacher=inputs.student.clone(), row_weights=None)
    divergence, _, gradient = launched(inputs, RowSpec(Divergence(kind, temperature=2.0)))
    assert divergence.abs().max() < 1e-6
    assert gradient.abs().max() < 1e-7


@pytest.mark.parametrize("kind", ["forward-kl", "dkd"])
def test_rows_that_are_ignored_are_not_read(kind: DivergenceKind) -> None:
    inputs = batch_of(4, 12, 9, seed=7)
    assert inputs.labels is not None
    inputs.labels[1] = IGNORED
    inputs.student[1] = torch.nan
    *losses, gradient = launched(inputs, RowSpec(Divergence(kind), 1.0, 1.0))
    assert all(part[1].eq(0.0).all() for part in (*losses, gradient))
    assert all(part.isfinite().all() for part in (*losses, gradient))


def test_a_batch_of_ignored_rows_gives_zeros() -> None:
    inputs = batch_of(2, 9, 9, seed=8)._replace(labels=torch.full((2,), IGNORED))
    assert all(part.eq(0.0).all() for part in launched(inputs, RowSpec(Divergence("jsd"), 1.0, 1.0, 0.1)))


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_half_precision_is_rounded_only_when_the_gradient_is_written(dtype: torch.dtype, rtol: float) -> None:
    inputs = batch_of(3, 18, 18, seed=9)
    assert inputs.teacher is not None
    inputs = inputs._replace(student=inputs.student.to(dtype), teacher=inputs.teacher.to(dtype))
    spec = RowSpec(Divergence("reverse-kl", temperature=2.0), 1.0, 0.5)
    ours, theirs = launched(inputs, spec), expected(inputs, spec)
    torch.testing.assert_close(ours[:2], theirs[:2], rtol=1e-5, atol=1e-5)
    assert ours[2].dtype == dtype
    torch.testing.assert_close(ours[2].float(), theirs[2], rtol=rtol, atol=1e-6)


def test_cross_entropy_alone_needs_no_teacher_and_equals_torch() -> None:
    inputs = batch_of(4, 12, 12, seed=10, masked=False)._replace(teacher=None, row_weights=None)
    assert inputs.labels is not None
    theirs = torch.nn.functional.cross_entropy(inputs.student, inputs.labels, reduction="none", label_smoothing=0.2)
    _, ours, _ = launched(inputs, RowSpec(None, 1.0, 1.0, 0.2))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_computing_the_maximum_first_changes_nothing() -> None:
    assert_same(batch_of(3, 20, 17, seed=11), RowSpec(Divergence("jsd", temperature=2.0), 1.0, 0.5), three_passes=True)


@pytest.mark.parametrize("kind", ["forward-kl", "nkd"])
def test_autograd_gets_the_objectives_gradient(kind: DivergenceKind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "runs_on_triton", lambda logits: True)
    inputs = batch_of(4, 12, 12, seed=12, masked=False)
    spec = RowSpec(Divergence(kind, temperature=2.0), 0.7, 0.5, 0.1)
    loss, gradient = objective_of(inputs, spec)
    leaf = inputs.student.clone().requires_grad_()
    assert inputs.labels is not None
    count = inputs.labels.ne(IGNORED).sum()
    total = row_loss(leaf * 1.0, inputs.teacher, inputs.labels, spec).total.sum() / count
    total.backward()  # the gradient from above is not 1, so that it is multiplied in
    assert leaf.grad is not None
    torch.testing.assert_close(total.detach(), loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(leaf.grad, gradient, rtol=1e-5, atol=1e-6)


@triton.jit
def log_sum_kernel(logits, high, low, width, THREE_PASSES: tl.constexpr, B: tl.constexpr):  # type: ignore[no-untyped-def]
    one = tl.zeros([1, 1], tl.int64)
    above, below, _ = log_sum(logits + one, width, one == 0, one - 1, 1.0, THREE_PASSES, 1, B)
    tl.store(high + one, above)
    tl.store(low + one, below)


@pytest.mark.parametrize("three_passes", [False, True])
@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_the_log_sum_gives_the_exact_softmax(name: str, three_passes: bool) -> None:
    with np.load(GOLDEN, allow_pickle=False) as archive:
        assert set(json.loads(str(archive["meta_json"]))["cases"]) == set(GOLDEN_CASES)
        x, exact, log_sum = (
            torch.from_numpy(archive[f"{name}.{key}"]) for key in ("x", "y_exact_f64", "log_sum_exp_f64")
        )
    high, low = torch.zeros(1, 1), torch.zeros(1, 1)
    log_sum_kernel[(1,)](x, high, low, len(x), three_passes, 4096)
    torch.testing.assert_close(((x - high) - low).exp().squeeze(0).double(), exact, rtol=0.0, atol=2e-7)
    torch.testing.assert_close((high.double() + low.double()).squeeze(), log_sum, rtol=1e-7, atol=1e-6)


def sparse(inputs: RowInputs, kept: int, classes: int) -> TopKTeacher:
    assert inputs.teacher is not None
    values, indices = inputs.teacher.topk(kept, dim=1)
    rest = inputs.teacher.scatter(1, indices, -torch.inf).logsumexp(1, keepdim=True)
    return TopKTeacher(TopK(indices, values, rest), classes)


@pytest.mark.parametrize(
    ("student", "teacher", "temperature", "ce_weight"), [(20, 20, 2.0, 0.5), (20, 14, 1.0, 0.5), (14, 20, 3.0, 0.0)]
)
def test_a_sparse_teacher_s_kernel_equals_the_sums(
    student: int, teacher: int, temperature: float, ce_weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = batch_of(4, student, teacher, seed=15, masked=False)
    inputs.student[2, 5] = -torch.inf
    assert inputs.teacher is not None
    spec = RowSpec(Divergence("forward-kl", temperature=temperature), 0.7, ce_weight)
    found = []
    for dtype in (torch.float64, torch.float32):
        monkeypatch.setattr(sparse_module, "runs_on_triton", lambda logits: logits.dtype == torch.float32)
        logits, scale = inputs.student.to(dtype, copy=True), torch.tensor(0.25, dtype=dtype)
        source = sparse(inputs._replace(teacher=inputs.teacher.to(dtype)), 5, teacher)
        losses = source.losses(logits, slice(0, 4), inputs.labels, spec, scale, True)
        found.append((losses.float(), logits.float()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
