"""What must hold for every loss term, whatever its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.recipe.losses import LOSSES, CrossEntropy, Kd, LossTerm, Nkd
from worker.losses import TERMS, build_term
from worker.losses.base import Rows

SPECS = [CrossEntropy(), CrossEntropy(label_smoothing=0.1), Kd(), Kd(temperature=1.0), Nkd(), Nkd(temperature=3.0)]


def draw(rows: int = 6, classes: int = 5, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> Rows:
    random = torch.Generator().manual_seed(0)
    student, teacher = (scale * torch.randn(rows, classes, generator=random, dtype=dtype) for _ in range(2))
    return Rows(student.requires_grad_(), torch.randint(classes, (rows,), generator=random), teacher)


def gradient(spec: LossTerm, rows: Rows) -> Tensor:
    (found,) = torch.autograd.grad(build_term(spec)(rows).sum(), rows.student)
    return found


def test_every_loss_of_the_contract_has_a_term() -> None:
    assert set(TERMS) == set(LOSSES)


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_gradient_is_that_of_the_value(spec: LossTerm) -> None:
    rows = draw(3, 4)
    assert torch.autograd.gradcheck(lambda logits: build_term(spec)(rows._replace(student=logits)), rows.student)


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_gradient_of_a_row_sums_to_zero(spec: LossTerm) -> None:
    sums = gradient(spec, draw()).sum(-1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_logits_stay_finite(spec: LossTerm, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype)
    rows = Rows(logits.clone().requires_grad_(), torch.tensor([1, 0]), logits.flip(0))
    assert build_term(spec)(rows).isfinite().all()
    assert gradient(spec, rows).isfinite().all()


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_half_precision_logits_are_computed_in_float32(spec: LossTerm) -> None:
    coarse = draw(dtype=torch.bfloat16)
    fine = coarse._replace(
        student=coarse.student.float(), teacher=None if coarse.teacher is None else coarse.teacher.float()
    )
    value = build_term(spec)(coarse)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, build_term(spec)(fine), rtol=0, atol=0)


@pytest.mark.parametrize("spec", [Kd(), Kd(temperature=1.0)], ids=repr)
def test_kd_of_a_student_equal_to_its_teacher_is_zero_with_zero_gradient(spec: Kd) -> None:
    rows = draw()
    same = rows._replace(teacher=rows.student.detach().clone())
    torch.testing.assert_close(build_term(spec)(same).detach(), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(spec, same), torch.zeros(6, 5, dtype=torch.float64), rtol=0, atol=1e-12)


def test_nkd_of_two_classes_has_no_non_target_part() -> None:
    rows = draw(classes=2)
    torch.testing.assert_close(build_term(Nkd(gamma=0.0))(rows), build_term(Nkd(gamma=100.0))(rows), rtol=0, atol=0)


@pytest.mark.parametrize("spec", [CrossEntropy(), Nkd()], ids=repr)
def test_one_hot_labels_count_like_indices(spec: LossTerm) -> None:
    rows = draw()
    one_hot = torch.nn.functional.one_hot(rows.labels, 5).double()
    torch.testing.assert_close(build_term(spec)(rows._replace(labels=one_hot)), build_term(spec)(rows))


@pytest.mark.parametrize("spec", [Kd(), Nkd()], ids=repr)
def test_a_term_that_needs_a_teacher_says_so_when_there_is_none(spec: LossTerm) -> None:
    with pytest.raises(ValueError, match="teacher"):
        build_term(spec)(draw()._replace(teacher=None))
