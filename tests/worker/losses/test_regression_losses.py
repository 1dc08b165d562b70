"""Regression losses: values computed by hand, their targets, and the effect of two teachers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses.numbers import Assistive, DistanceLoss, Mse, SmoothL1, Wing
from worker.losses.assistive import AssistiveTerm
from worker.losses.base import LossInputs, LossTerm
from worker.losses.regression import DistanceTerm, MseTerm, SmoothL1Term, WingTerm

DISTANCES: list[DistanceLoss] = [Mse(), SmoothL1(), SmoothL1(beta=0.3), Wing(), Wing(w=1.0, epsilon=0.5)]
TERMS: dict[type[DistanceLoss], type[DistanceTerm]] = {Mse: MseTerm, SmoothL1: SmoothL1Term, Wing: WingTerm}
BOTH = Assistive(tolerant="soft", tough="hard")


def build(spec: DistanceLoss | Assistive) -> LossTerm:
    return AssistiveTerm(spec) if isinstance(spec, Assistive) else TERMS[type(spec)](spec)


def draw(rows: int = 4, numbers: int = 6, dtype: torch.dtype = torch.float64) -> LossInputs:
    random = torch.Generator().manual_seed(0)
    student, labels, soft, hard = (torch.randn(rows, numbers, generator=random, dtype=dtype) for _ in range(4))
    return LossInputs(student.requires_grad_(), labels, hard, teachers={"soft": soft, "hard": hard})


def cost(spec: DistanceLoss, gap: float) -> float:
    outputs = torch.tensor([[gap]], dtype=torch.float64)
    return float(build(spec)(LossInputs(outputs, torch.zeros(1, 1), None)))


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss.sum(), of)
    return found


@pytest.mark.parametrize(
    ("spec", "gap", "expected"),
    [
        (Mse(), -3.0, 9.0),
        (SmoothL1(beta=2.0), 1.0, 0.25),
        (SmoothL1(beta=2.0), -3.0, 2.0),
        (Wing(w=10.0, epsilon=2.0), -2.0, 10.0 * math.log(2.0)),
        (Wing(w=10.0, epsilon=2.0), 10.0, 10.0 * math.log(6.0)),
        (Wing(w=10.0, epsilon=2.0), -25.0, 15.0 + 10.0 * math.log(6.0)),
        (Wing(), 2 / 256, 10 / 256 * math.log(2.0)),
    ],
)
def test_distances_by_hand(spec: DistanceLoss, gap: float, expected: float) -> None:
    assert cost(spec, gap) == pytest.approx(expected)
    assert cost(spec, -gap) == cost(spec, gap)


@pytest.mark.parametrize("spec", [Wing(), SmoothL1(beta=0.3)])
def test_both_branches_of_a_distance_meet(spec: Wing | SmoothL1) -> None:
    meeting = spec.w if isinstance(spec, Wing) else spec.beta
    assert cost(spec, meeting * (1 - 1e-9)) == pytest.approx(cost(spec, meeting), rel=1e-8)


def test_distances_equal_the_librarys() -> None:
    rows = draw()
    for spec, expected in (
        (Mse(), F.mse_loss(rows.student, rows.labels, reduction="none")),
        (SmoothL1(beta=0.3), F.smooth_l1_loss(rows.student, rows.labels, reduction="none", beta=0.3)),
    ):
        torch.testing.assert_close(build(spec)(rows), expected.mean(-1))


@pytest.mark.parametrize("spec", DISTANCES)
def test_the_target_is_the_label_or_the_teachers_answer(spec: DistanceLoss) -> None:
    rows, taught = draw(), spec.model_copy(update={"target": "teacher"})
    assert rows.teacher is not None
    assert (spec.needs_teacher, taught.needs_teacher) == (False, True)
    torch.testing.assert_close(build(taught)(rows), build(spec)(rows._replace(labels=rows.teacher)))
    torch.testing.assert_close(build(spec)(rows._replace(teacher=None)), build(spec)(rows))
    assert not torch.allclose(build(taught)(rows), build(spec)(rows))
    with pytest.raises(ValueError, match="teacher"):
        build(taught)(rows._replace(teacher=None))


def test_a_teacher_that_nothing_is_learned_from_is_refused() -> None:
    assert Mse(target="teacher", teacher="big").named_teachers() == {"teacher": "big"}
    with pytest.raises(ValueError, match="set target to teacher, or omit teacher"):
        Mse(teacher="big")


@pytest.mark.parametrize("spec", [*DISTANCES, BOTH])
def test_the_gradient_is_that_of_the_value(spec: DistanceLoss | Assistive) -> None:
    rows = draw(2)
    assert torch.autograd.gradcheck(lambda outputs: build(spec)(rows._replace(student=outputs)), rows.student)


@pytest.mark.parametrize("spec", [*DISTANCES, BOTH])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(spec: DistanceLoss | Assistive, dtype: torch.dtype) -> None:
    coarse = draw(dtype=dtype)
    fine = LossInputs(
        coarse.student.float(), coarse.labels.float(), None, teachers={k: v.float() for k, v in coarse.teachers.items()}
    )
    assert build(spec)(coarse).dtype == torch.float32
    torch.testing.assert_close(build(spec)(coarse), build(spec)(fine), rtol=0, atol=0)


@pytest.mark.parametrize("spec", [*DISTANCES, BOTH])
def test_an_exact_answer_costs_nothing_and_stays(spec: DistanceLoss | Assistive) -> None:
    rows = draw()
    exact = rows._replace(labels=rows.student.detach().clone())
    values = build(spec)(exact)
    assert not values.any()
    assert not gradient(values, rows.student).any()


def assisted(outputs: float, tough: float, tolerant: float, spec: Assistive = BOTH) -> float:
    """For a label of 1."""
    one = torch.ones(1, 1, dtype=torch.float64)
    rows = LossInputs(outputs * one, one, None, teachers={"soft": tolerant * one, "hard": tough * one})
    return float(AssistiveTerm(spec)(rows))


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (2.0, 2.0 * (1.0 + 3 * 0.4 - 0.16) + 1.9 * 0.8 + 1.8 * 0.6),  # beyond both teachers
        (1.3, 2.0 * 3 * 0.3 + 1.9 * 0.1 - 0.4 * 0.1),  # beyond the tough one, within the tolerant one
        (1.1, 2.0 * 3 * 0.1 - 0.45 * 0.1 - 0.4 * 0.3),  # within both
        (1.05, 2.0 * 3 * 0.05 - 0.45 * 0.15),  # too near for the tolerant one, whose 15 % of 0.4 are 0.06
        (1.02, 2.0 * 3 * 0.02),  # too near for both: 15 % of 0.2 are 0.03
    ],
)
def test_two_teachers_by_hand(outputs: float, expected: float) -> None:
    """Off the label by 0.2 and 0.4. Teachers on the other side of the label, and the mirror image, are alike."""
    for tough in (0.8, 1.2):
        for tolerant in (0.6, 1.4):
            assert assisted(outputs, tough, tolerant) == pytest.approx(expected)
            assert assisted(2.0 - outputs, tough, tolerant) == pytest.approx(expected)


def test_teachers_that_are_right_leave_the_student_alone_unless_it_is_beyond_them() -> None:
    assert assisted(1.3, 1.0, 1.0, BOTH.model_copy(update={"label_weight": 0.0})) == 0.0


def test_the_main_part_is_continuous_where_the_student_is_as_far_off_as_the_tolerant_teacher() -> None:
    main = BOTH.model_copy(update={"tolerant_weight": 0.0, "tough_weight": 0.0, "label_weight": 1.0})
    at, beyond = (assisted(1.4 + step, 1.0, 1.4, main) for step in (0.0, 1e-9))
    assert at == pytest.approx(beyond, abs=1e-8)
    assert at == pytest.approx(1.2)


def test_each_part_has_its_weight() -> None:
    rows = draw()
    parts = AssistiveTerm(BOTH).parts(rows)
    spec = BOTH.model_copy(update={"label_weight": 0.5, "tolerant_weight": 3.0, "tough_weight": 7.0})
    torch.testing.assert_close(AssistiveTerm(spec)(rows), 0.5 * parts.label + 3.0 * parts.tolerant + 7.0 * parts.tough)


def test_a_teacher_whose_answers_are_missing_is_named() -> None:
    with pytest.raises(ValueError, match="'hard'"):
        AssistiveTerm(BOTH)(draw()._replace(teachers={"soft": torch.zeros(4, 6)}))


def test_the_two_teachers_are_named_by_their_fields_alone() -> None:
    assert BOTH.named_teachers() == {"tolerant": "soft", "tough": "hard"}
    with pytest.raises(ValueError, match="two different teachers"):
        Assistive(tolerant="one", tough="one")
    with pytest.raises(ValueError, match="teacher must not be given"):
        Assistive(tolerant="soft", tough="hard", teacher="soft")
