"""Row losses: the plain path and its gradient in place; the Triton kernel in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.kernels.samples import KINDS, batch_of, objective_of, only_the_label_is_offered
from tests.worker.kernels.triton_tools import compiled, pass_under_the_interpreter
from worker.kernels import rows
from worker.kernels.rows import row_loss, row_loss_
from worker.kernels.spec import Divergence, DivergenceKind, RowInputs, RowLosses, RowSpec
from worker.tensors import IGNORED

MIXED = RowSpec(Divergence("jsd", temperature=2.0), 0.7, 0.5, 0.1)


def computed(inputs: RowInputs, spec: RowSpec, **settings: Any) -> tuple[RowLosses, Tensor]:
    """The losses, and the gradient that took the place of a copy of the student's logits."""
    student = inputs.student.clone()
    _, teacher, labels, row_weights = inputs
    losses = row_loss_(student, teacher, labels, spec, row_weights=row_weights, **settings)
    return losses, student


def in_float64(inputs: RowInputs) -> RowInputs:
    assert inputs.teacher is not None
    return inputs._replace(student=inputs.student.double(), teacher=inputs.teacher.double())


def test_the_kernels_agree_under_the_interpreter() -> None:
    pass_under_the_interpreter("tests/worker/kernels/interpreted.py")


ROW_TYPES = {
    **dict.fromkeys(("student_pointer", "teacher_pointer"), "*bf16"),
    **dict.fromkeys(("row_weights", "divergences", "cross_entropies"), "*fp32"),
    **dict.fromkeys(("rows", "student_width", "teacher_width", "student_stride", "teacher_stride"), "i32"),
    **{"labels": "*i64", "ignore_index": "i32"},
}
SPARSE_TYPES = {
    **dict.fromkeys(("labels", "kept_columns"), "*i64"),
    **dict.fromkeys(("scale", "kept_logs", "other_logs", "divergences", "cross_entropies"), "*fp32"),
    **dict.fromkeys(("rows", "width", "shared", "stride", "kept", "ignore_index"), "i32"),
    "pointer": "*bf16",
}


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("kind", [*KINDS, "sparse"])
def test_the_kernels_compile_for_cuda_without_a_gpu_and_keep_to_registers(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from worker.kernels import sparse_kernels
    from worker.kernels.row_kernels import kernels, launches

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    used = {name: True for name in ("CE", "LABELLED", "ROW_WEIGHTED", "GRADIENT", "HARD", "OTHERS")}
    fixed = {**used, "KIND": kind, "R": 1, "K": 64, "B": launches.MOST_COLUMNS}
    kernel, types = (
        (sparse_kernels.sparse_kernel, SPARSE_TYPES) if kind == "sparse" else (kernels.row_kernel, ROW_TYPES)
    )
    warps = launches.MOST_COLUMNS // launches.LOGITS_OF_A_WARP
    stack = compiled(kernel, types, fixed, tmp_path, num_warps=warps).stack
    assert stack <= 16, "a few numbers may be parked, no block of logits"


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradient_are_the_objectives(kind: DivergenceKind) -> None:
    inputs = batch_of(5, 11, 11, seed=1)
    assert inputs.labels is not None
    inputs = inputs._replace(row_weights=inputs.labels.ne(IGNORED) / 4.0)
    spec = RowSpec(Divergence(kind, temperature=2.0, beta=0.3), 0.7, 0.5, 0.1)
    loss, gradient = objective_of(inputs, spec)
    losses, ours = computed(inputs, spec)
    torch.testing.assert_close(losses.total.sum(), loss)
    torch.testing.assert_close(ours, gradient)


def test_how_many_rows_are_worked_on_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = in_float64(batch_of(7, 11, 8, seed=2))
    whole = computed(inputs, MIXED)
    monkeypatch.setattr(rows, "CHUNK", 22)
    torch.testing.assert_close(computed(inputs, MIXED), whole, rtol=1e-13, atol=1e-14)


def test_columns_that_one_side_lacks_are_masked_not_zero() -> None:
    inputs = batch_of(3, 9, 6, seed=3, masked=False)
    assert inputs.teacher is not None
    masked = torch.cat([inputs.teacher, torch.full((3, 3), -torch.inf)], dim=1)
    torch.testing.assert_close(computed(inputs, MIXED), computed(inputs._replace(teacher=masked), MIXED))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_offer_the_label_alone_are_finite(kind: DivergenceKind) -> None:
    losses, gradient = computed(only_the_label_is_offered(), RowSpec(Divergence(kind, temperature=2.0), 0.7, 0.5))
    assert all(part.isfinite().all() for part in (*losses, gradient))


def test_smoothed_labels_are_those_of_torch() -> None:
    inputs = batch_of(4, 9, 9, seed=4, masked=False)
    assert inputs.labels is not None
    theirs = torch.nn.functional.cross_entropy(inputs.student, inputs.labels, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(computed(inputs, RowSpec(None, 1.0, 1.0, 0.2))[0].cross_entropy, theirs)


@pytest.mark.parametrize("spec", [MIXED, RowSpec(Divergence("forward-kl"), 0.7, 0.5), RowSpec(None, ce_weight=0.5)])
def test_rows_that_are_ignored_leave_no_trace(spec: RowSpec) -> None:
    inputs = batch_of(4, 9, 9, seed=5, masked=False)
    inputs.student[1] = torch.nan
    losses, gradient = computed(inputs, spec)
    assert all(part[1] == 0.0 for part in losses)
    assert gradient[1].eq(0.0).all()
    assert gradient.isfinite().all()


def test_a_batch_of_ignored_rows_and_one_of_none_are_finite() -> None:
    inputs = batch_of(2, 9, 9, seed=6)._replace(labels=torch.full((2,), IGNORED))
    losses, gradient = computed(inputs, MIXED)
    assert losses.total.eq(0.0).all()
    assert gradient.eq(0.0).all()
    nothing = RowInputs(*(side[:0] for side in inputs if side is not None))
    assert computed(nothing, MIXED)[0].total.shape == (0,)


def test_without_gradient_the_logits_stay() -> None:
    inputs = batch_of(3, 9, 9, seed=7)
    losses, student = computed(inputs, MIXED, gradient=False)
    torch.testing.assert_close(student, inputs.student, rtol=0.0, atol=0.0)
    torch.testing.assert_close(losses, computed(inputs, MIXED)[0])


def test_the_gradient_stands_in_the_logits_own_memory() -> None:
    inputs = batch_of(3, 9, 9, seed=8)
    wide = torch.cat([inputs.student, inputs.student], dim=1)
    row_loss_(wide[:, :9], inputs.teacher, inputs.labels, MIXED)
    expected = computed(inputs._replace(row_weights=None), MIXED)[1]
    torch.testing.assert_close(wide[:, :9], expected)
    torch.testing.assert_close(wide[:, 9:], inputs.student, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_autograd_multiplies_by_what_comes_from_above(factor: float) -> None:
    inputs = batch_of(3, 9, 9, seed=9)._replace(row_weights=None)
    leaf = inputs.student.clone().requires_grad_()
    (factor * row_loss(leaf * 1.0, inputs.teacher, inputs.labels, MIXED).total.sum()).backward()
    torch.testing.assert_close(leaf.grad, factor * computed(inputs, MIXED)[1])


def test_autograd_leaves_logits_that_need_no_gradient() -> None:
    inputs = batch_of(3, 9, 9, seed=10)
    kept = inputs.student.clone()
    assert not row_loss(inputs.student, inputs.teacher, inputs.labels, MIXED).total.requires_grad
    torch.testing.assert_close(inputs.student, kept, rtol=0.0, atol=0.0)


def test_backward_runs_once() -> None:
    inputs = batch_of(3, 9, 9, seed=11)
    leaf = inputs.student.clone().requires_grad_()
    total = row_loss(leaf * 1.0, inputs.teacher, inputs.labels, MIXED).total.sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward runs once"):
        total.backward()


def test_an_operation_that_saved_the_logits_raises_in_backward() -> None:
    inputs = batch_of(3, 9, 9, seed=12)
    logits = inputs.student.clone().requires_grad_().tanh()
    total = row_loss(logits, inputs.teacher, inputs.labels, MIXED).total.sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_logits_that_are_changed_before_backward_are_noticed() -> None:
    inputs = batch_of(3, 9, 9, seed=13)
    logits = inputs.student.clone().requires_grad_() * 1.0
    total = row_loss(logits, inputs.teacher, inputs.labels, MIXED).total.sum()
    logits.detach().zero_()
    with pytest.raises(RuntimeError, match="changed before backward"):
        total.backward()


@pytest.mark.parametrize(
    ("changes", "spec", "message"),
    [
        ({"student": torch.zeros(3, 9, dtype=torch.int64)}, MIXED, "student: accepted: floating"),
        ({"student": torch.zeros(9, 3).T}, MIXED, "student: accepted: rows without gaps"),
        ({"teacher": None}, MIXED, "teacher: the divergence needs"),
        ({"teacher": torch.zeros(2, 9)}, MIXED, "teacher: accepted: logits"),
        ({"labels": None}, MIXED, "labels: the cross-entropy"),
        ({"labels": None}, RowSpec(Divergence("dkd")), "labels: the cross-entropy"),
        ({"labels": torch.zeros(3, 9)}, MIXED, "labels: accepted: integers"),
        ({"row_weights": torch.ones(2)}, MIXED, "row_weights: accepted"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(changes: dict[str, Any], spec: RowSpec, message: str) -> None:
    inputs = batch_of(3, 9, 9, seed=14)._replace(**changes)
    with pytest.raises(ValueError, match=message):
        row_loss_(*inputs[:3], spec, row_weights=inputs.row_weights)  # type: ignore[arg-type]


def test_settings_that_mean_nothing_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="temperature: accepted: a number above 0"):
        Divergence("jsd", temperature=0.0)
    with pytest.raises(ValueError, match="label_smoothing: accepted: a number from 0 to below 1"):
        RowSpec(None, 0.0, 1.0, label_smoothing=1.0)


def test_a_divergence_alone_needs_no_labels() -> None:
    inputs = batch_of(3, 9, 9, seed=15)._replace(labels=None)
    assert computed(inputs, RowSpec(Divergence("tvd")))[0].total.gt(0.0).all()
