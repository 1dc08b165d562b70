"""Properties of every loss term, independent of its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.recipe import losses
from app.recipe.losses import LOSSES, LossSpec, Nkd
from tests.worker.losses.samples import CLASSES, PARENTS, SPECS, draw, term_of
from worker.losses import BUILT, TERMS
from worker.losses.base import LossInputs

DIVERGENCES = [spec for spec in SPECS if not spec.kind.startswith(("cross", "nkd", "kd-", "dist"))]
NOT_SMOOTH = [spec for spec in SPECS if isinstance(spec, losses.Akl)]
"""Their weights depend on the student, but have no gradient."""


def gradient(spec: LossSpec, rows: LossInputs) -> Tensor:
    (found,) = torch.autograd.grad(term_of(spec)(rows).sum(), rows.student)
    return found


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def test_every_loss_of_the_contract_has_a_term() -> None:
    assert sorted(spec.__name__ for spec in (*TERMS, *BUILT)) == sorted(spec.__name__ for spec in LOSSES)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec not in NOT_SMOOTH])
def test_gradient_is_that_of_the_value(spec: LossSpec) -> None:
    rows = draw(3)
    assert torch.autograd.gradcheck(lambda logits: term_of(spec)(rows._replace(student=logits)), rows.student)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec != losses.LogitMse()])
def test_gradient_of_a_row_sums_to_zero(spec: LossSpec) -> None:
    sums = gradient(spec, draw()).sum(-1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_logits_stay_finite(spec: LossSpec, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, -1e4, 1.0], [-1e4, 1e4, 1e4, 0.0, -1e4]], dtype=dtype)
    rows = LossInputs(logits.clone().requires_grad_(), torch.tensor([1, 0]), logits.flip(0), head=torch.eye(CLASSES))
    assert term_of(spec)(rows).isfinite().all()
    assert gradient(spec, rows).isfinite().all()


@pytest.mark.parametrize("spec", SPECS)
def test_half_precision_logits_are_computed_in_float32(spec: LossSpec) -> None:
    coarse = draw(dtype=torch.bfloat16)
    assert coarse.teacher is not None
    assert coarse.head is not None
    fine = coarse._replace(student=coarse.student.float(), teacher=coarse.teacher.float(), head=coarse.head.float())
    value = term_of(spec)(coarse)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, term_of(spec)(fine), rtol=0, atol=0)


@pytest.mark.parametrize("spec", DIVERGENCES)
def test_a_divergence_of_a_student_equal_to_its_teacher_is_zero_with_zero_gradient(spec: LossSpec) -> None:
    rows = draw()
    same = rows._replace(teacher=rows.student.detach().clone())
    torch.testing.assert_close(term_of(spec)(same).detach(), zeros(6), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(spec, same), zeros(6, CLASSES), rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", DIVERGENCES)
def test_a_divergence_is_positive_where_student_and_teacher_differ(spec: LossSpec) -> None:
    assert (term_of(spec)(draw()) > 0.0).all()


@pytest.mark.parametrize("spec", SPECS)
def test_a_column_that_both_sides_mask_has_no_effect(spec: LossSpec) -> None:
    rows = draw()
    assert rows.teacher is not None
    assert rows.head is not None
    rows = rows._replace(labels=rows.labels.clamp(max=CLASSES - 2))
    masked = rows.student.detach().clone()
    masked[:, -1] = -torch.inf
    padded = rows._replace(student=masked.requires_grad_(), teacher=rows.teacher.clone())
    padded.teacher[:, -1] = -torch.inf
    fewer = LossInputs(rows.student[:, :-1], rows.labels, rows.teacher[:, :-1], head=rows.head[:-1])
    short = spec.model_copy(update={"parents": PARENTS[:-1]}) if isinstance(spec, losses.KdRel) else spec
    torch.testing.assert_close(term_of(spec)(padded), term_of(short)(fewer), rtol=1e-12, atol=1e-12)
    (reference,) = torch.autograd.grad(term_of(short)(fewer).sum(), rows.student)
    torch.testing.assert_close(gradient(spec, padded), reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.needs_teacher])
def test_a_column_that_one_side_masks_leaves_values_and_gradients_finite(spec: LossSpec, side: str) -> None:
    rows = draw()
    rows = rows._replace(labels=rows.labels.clamp(max=CLASSES - 2))
    masked = getattr(rows, side).detach().clone()
    masked[:, -1] = -torch.inf
    rows = rows._replace(**{side: masked.requires_grad_(side == "student")})
    assert term_of(spec)(rows).isfinite().all()
    assert gradient(spec, rows).isfinite().all()


def test_nkd_of_two_classes_has_no_non_target_part() -> None:
    rows = draw(classes=2)
    torch.testing.assert_close(term_of(Nkd(gamma=0.0))(rows), term_of(Nkd(gamma=100.0))(rows), rtol=0, atol=0)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if "ingle-label" in spec.applies or not spec.needs_teacher])
def test_one_hot_labels_count_like_indices(spec: LossSpec) -> None:
    rows = draw()
    one_hot = torch.nn.functional.one_hot(rows.labels, 5).double()
    torch.testing.assert_close(term_of(spec)(rows._replace(labels=one_hot)), term_of(spec)(rows))


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.needs_teacher])
def test_a_term_that_needs_a_teacher_raises_without_one(spec: LossSpec) -> None:
    with pytest.raises(ValueError, match="teacher"):
        term_of(spec)(draw()._replace(teacher=None, head=None))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy_equals_the_librarys(smoothing: float, soft: bool) -> None:
    rows = draw()
    labels = rows.student.detach().flip(0).softmax(-1) if soft else rows.labels
    found = term_of(losses.CrossEntropy(label_smoothing=smoothing))(rows._replace(labels=labels))
    expected = torch.nn.functional.cross_entropy(rows.student, labels, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
