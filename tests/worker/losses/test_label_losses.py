"""USKD and FerKD: which samples use which targets, which are left out, and values computed by hand."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.losses import CrossEntropy, Kd
from app.recipe.losses.labels import Ferkd, Uskd
from app.recipe.losses.taps import Tap
from tests.worker.losses.samples import CLASSES, draw
from worker.errors import UserError
from worker.losses.base import Features, LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.cross_entropy import CrossEntropyTerm
from worker.losses.divergences import DivergenceTerm
from worker.losses.ferkd import EASY, HARD, LOST, SURE, FerkdTerm
from worker.losses.soft_labels import recover
from worker.losses.uskd import UskdTerm, named_classes, others_part

TAP = Tap(path="stages.1")
WIDTH = 3
SORTING = Ferkd(low=0.3, middle=0.5, high=0.8)
"""A spread of thresholds that sorts the drawn rows into more than one kind."""
FERKDS = [
    SORTING,
    Ferkd(low=0.0, middle=0.0),
    Ferkd(low=0.0, middle=1.0, smoothing=0.3),
    Ferkd(confidence="target"),
    Ferkd(thresholds="quantile", low=0.2, middle=0.6, high=0.9),
    Ferkd(top_k=2),
    Ferkd(top_k=3, rest="drop"),
]
USKDS = [Uskd(feature=TAP), Uskd(feature=TAP, alpha=0.1, mu=0.1), Uskd(feature=TAP, rank_source="prob", beta=1.0)]


def uskd(spec: Uskd, classes: int = CLASSES, shape: tuple[int, ...] = (2, WIDTH)) -> UskdTerm:
    term = UskdTerm(spec, LossBuilder({TAP: torch.Size(shape)}, {}, classes, param="recipe.losses[0]"))
    term.head.double()
    return term


def with_feature(rows: LossInputs) -> LossInputs:
    random = torch.Generator().manual_seed(1)
    feature = torch.randn(len(rows.student), WIDTH, generator=random, dtype=torch.float64).requires_grad_()
    return rows._replace(features=Features({TAP: feature}, {}), teacher=None)


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss.sum(), of, retain_graph=True)
    return found


def mixed(rows: LossInputs) -> LossInputs:
    """Labels of two classes each."""
    first, second = rows.labels, (rows.labels + 1) % CLASSES
    return rows._replace(labels=0.7 * F.one_hot(first, CLASSES) + 0.3 * F.one_hot(second, CLASSES).double())


@pytest.mark.parametrize("spec", USKDS)
def test_the_feature_and_the_weak_head_learn_from_the_weak_part_alone(spec: Uskd) -> None:
    term, rows = uskd(spec), with_feature(draw())
    weak, loss = term.parts(rows).weak, term(rows)
    for learner in (rows.features.student[TAP], *term.head.parameters()):
        torch.testing.assert_close(gradient(loss, learner), spec.mu * gradient(weak, learner))
        assert gradient(loss, learner).any()
    with pytest.raises(RuntimeError, match="not have been used"):
        gradient(weak, rows.student)


def test_the_weak_part_is_cross_entropy_with_smoothed_labels() -> None:
    term, rows = uskd(Uskd(feature=TAP)), with_feature(draw())
    weak = term.head(rows.features.student[TAP])
    expected = F.cross_entropy(weak, rows.labels, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(term.parts(rows).weak, expected)


@pytest.mark.parametrize("labels", ["hard", "mixed"])
def test_the_soft_label_of_the_target_is_a_constant(labels: str) -> None:
    """The gradient of -sum_k t_k log q_k with constant t is q sum_k t_k - t."""
    rows = with_feature(draw())
    rows = mixed(rows) if labels == "mixed" else rows
    q = rows.student.detach().softmax(-1)
    named = named_classes(rows.labels, q)
    squared = q.gather(-1, named.columns).square()
    soft = torch.zeros_like(q).scatter(-1, named.columns, squared + named.values - squared.mean(0))
    found = gradient(uskd(Uskd(feature=TAP)).parts(rows).target, rows.student)
    torch.testing.assert_close(found, q * soft.sum(-1, keepdim=True) - soft)


@pytest.mark.parametrize(("source", "order"), [("log", [1 / 3, 1.0, 1 / 2]), ("prob", [1 / 3, 1 / 2, 1.0])])
def test_the_order_of_the_classes_by_hand(source: Literal["log", "prob"], order: list[float]) -> None:
    """Class 0 is the label. The weak head gives all classes 0.11, 0.11 and 0.89, the student -0.55, -0.23 and -1.04 by
    logarithms and 0.43, 0.86 and 0.14 by probabilities, so only the first of these outweighs the weak head."""
    student, weak = torch.tensor([[0.3, 0.6, 0.1]]).double(), torch.tensor([[0.1, 0.1, 0.8]]).double()
    term = uskd(Uskd(feature=TAP, rank_source=source), classes=3)
    found = term.order(student.log(), weak.log(), named_classes(torch.tensor([0]), student))
    assert found.tolist() == [order]


def test_the_part_of_the_other_classes_by_hand() -> None:
    """Class 1 is the label; 0 and 2 have the orders 1/3 and 1, so the weights 1/4 and 3/4."""
    logits = torch.tensor([[0.0, 5.0, math.log(3.0)]], dtype=torch.float64)
    order = torch.tensor([[1 / 3, 1 / 2, 1.0]], dtype=torch.float64)
    found = others_part(logits, named_classes(torch.tensor([1]), logits), order)
    assert float(found) == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))


@pytest.mark.parametrize("spec", USKDS)
def test_the_gradient_of_a_self_taught_row_sums_to_zero(spec: Uskd) -> None:
    for rows in (with_feature(draw()), mixed(with_feature(draw()))):
        sums = gradient(uskd(spec)(rows), rows.student).sum(-1)
        torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", USKDS)
def test_rows_that_do_not_count_change_nothing_for_the_others(spec: Uskd) -> None:
    rows = with_feature(draw())
    fewer = LossInputs(
        rows.student[:4], rows.labels[:4], None, features=Features({TAP: rows.features.student[TAP][:4]}, {})
    )
    term = uskd(spec)
    masked = term(rows._replace(valid=torch.arange(6) < 4))
    torch.testing.assert_close(masked[:4], term(fewer))
    assert not torch.allclose(term(rows)[:4], term(fewer), rtol=1e-6)


@pytest.mark.parametrize("spec", USKDS)
def test_one_hot_labels_name_one_class(spec: Uskd) -> None:
    rows, term = with_feature(draw()), uskd(spec)
    one_hot = rows._replace(labels=F.one_hot(rows.labels, CLASSES).double())
    torch.testing.assert_close(term(one_hot), term(rows))
    torch.testing.assert_close(gradient(term(one_hot), rows.student), gradient(term(rows), rows.student))


@pytest.mark.parametrize("spec", USKDS)
def test_a_masked_column_has_no_effect_in_either_head(spec: Uskd) -> None:
    rows = with_feature(draw())
    rows = rows._replace(labels=rows.labels.clamp(max=CLASSES - 2))
    whole, part = uskd(spec), uskd(spec, classes=CLASSES - 1)
    part.head.weight = nn.Parameter(whole.head.weight[:-1].detach())
    part.head.bias = nn.Parameter(whole.head.bias[:-1].detach())
    masked = rows.student.detach().clone()
    masked[:, -1] = -torch.inf
    padded = rows._replace(student=masked.requires_grad_())
    fewer = rows._replace(student=rows.student[:, :-1])
    torch.testing.assert_close(whole(padded), part(fewer))
    torch.testing.assert_close(gradient(whole(padded), padded.student), gradient(part(fewer), rows.student))


def test_a_label_that_names_all_classes_leaves_no_others() -> None:
    rows = with_feature(draw(classes=2))
    rows = rows._replace(labels=torch.tensor([[0.6, 0.4]]).double().expand(6, 2))
    others = uskd(Uskd(feature=TAP), classes=2).parts(rows).others
    assert not others.any()
    assert not gradient(others, rows.student).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", USKDS)
def test_huge_logits_of_a_self_taught_student_stay_finite(spec: Uskd, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, -1e4, 1.0], [-1e4, 1e4, 1e4, 0.0, -1e4]], dtype=dtype).requires_grad_()
    rows = LossInputs(
        logits, torch.tensor([1, 0]), None, features=Features({TAP: torch.full((2, WIDTH), 1e4).to(dtype)}, {})
    )
    term = uskd(spec)
    term.head.float()
    loss = term(rows)
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert gradient(loss, logits).isfinite().all()


def test_two_terms_on_the_same_feature_share_one_weak_head() -> None:
    builder = LossBuilder({TAP: torch.Size((2, 3))}, {}, CLASSES)
    first, second = (UskdTerm(Uskd(feature=TAP, mu=mu), builder) for mu in (0.1, 0.2))
    assert first.head is second.head
    assert len(builder.aux_modules) == len(builder.trained) == 1


@pytest.mark.parametrize("shape", [(2, 3), (2, 7, 3), (2, 3, 4, 4)])
def test_the_weak_head_fits_its_feature_whatever_the_kind(shape: tuple[int, ...]) -> None:
    term, rows = uskd(Uskd(feature=TAP), shape=shape), draw(2)
    assert isinstance(term.head, nn.Linear)
    assert (term.head.in_features, term.head.out_features) == (3, CLASSES)
    feature = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert term(rows._replace(features=Features({TAP: feature}, {}))).shape == (2,)


def test_padding_does_not_reach_the_weak_head() -> None:
    term, rows = uskd(Uskd(feature=TAP), shape=(2, 4, 3)), draw(2)
    feature = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = torch.tensor([[True, True, False, False], [True, True, True, True]])
    padded = term.parts(rows._replace(features=Features({TAP: feature}, {}, tokens))).weak
    short = term.parts(rows._replace(features=Features({TAP: feature[:, :2]}, {}))).weak
    torch.testing.assert_close(padded[0], short[0])


@pytest.mark.parametrize("shape", [(2, 3, 4, 4, 4), (2,)])
def test_a_feature_that_has_no_vector_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="accepted: vectors") as caught:
        uskd(Uskd(feature=TAP), shape=shape)
    assert caught.value.param == "recipe.losses[0].feature"


def ferkd_rows(*confidences: float) -> LossInputs:
    """Rows with these largest probabilities, of class 0, out of three; the label is class 1."""
    p = torch.tensor([[c, (1.0 - c) * 0.6, (1.0 - c) * 0.4] for c in confidences], dtype=torch.float64)
    student = torch.randn(len(p), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return LossInputs(student.requires_grad_(), torch.ones(len(p), dtype=torch.int64), p.log())


def test_crops_are_sorted_by_the_confidence_of_the_teacher() -> None:
    """Thresholds belong to the side that is kept, or keeps its soft label."""
    p = torch.tensor([[0.4375, 0.3125, 0.25], [0.5, 0.25, 0.25], [0.625, 0.25, 0.125], [0.75, 0.25, 0.0]]).double()
    rows = LossInputs(torch.zeros(4, 3).double(), torch.tensor([1, 1, 2, 0]), p.log())
    term = FerkdTerm(Ferkd(low=0.5, middle=0.625, high=0.7, smoothing=0.2))
    found = term.calibrate(p.log(), torch.zeros(4, 3, dtype=torch.bool), rows)
    assert found.kinds.tolist() == [LOST, HARD, SURE, EASY]
    assert found.kept.tolist() == [False, True, True, False]
    torch.testing.assert_close(found.labels[1], torch.tensor([0.1, 0.8, 0.1]).double())
    torch.testing.assert_close(found.labels[2], p[2])


def test_the_confidence_may_be_that_of_the_label() -> None:
    rows = ferkd_rows(0.5, 0.9)  # the label has 0.3 and 0.06
    term = FerkdTerm(Ferkd(confidence="target", low=0.1, middle=0.2))
    log_p = rows.teacher
    assert log_p is not None
    assert term.calibrate(log_p, torch.zeros(2, 3, dtype=torch.bool), rows).kinds.tolist() == [SURE, LOST]


def test_the_mean_is_that_of_the_kept_crops() -> None:
    rows = ferkd_rows(0.35, 0.6, 0.7, 0.95)
    values = FerkdTerm(Ferkd(low=0.4, middle=0.5, high=0.9))(rows)
    assert rows.teacher is not None
    expected = F.cross_entropy(rows.student[1:3], rows.teacher[1:3].exp())
    torch.testing.assert_close(values.mean(), expected)
    assert values[[0, 3]].tolist() == [0.0, 0.0]
    assert not gradient(values, rows.student)[[0, 3]].any()


def test_where_nothing_would_be_kept_all_is_with_the_teachers_labels() -> None:
    rows = ferkd_rows(0.4, 0.5)
    lost, all_kept = FerkdTerm(Ferkd(low=0.9, middle=0.9))(rows), FerkdTerm(Ferkd(low=0.0, middle=0.0))(rows)
    torch.testing.assert_close(lost, all_kept)


def test_when_nothing_is_sorted_out_the_gradient_is_that_of_kd() -> None:
    rows = draw()
    found = gradient(FerkdTerm(Ferkd(low=0.0, middle=0.0))(rows), rows.student)
    torch.testing.assert_close(found, gradient(DivergenceTerm(Kd(temperature=1.0))(rows), rows.student))


def test_when_all_crops_are_hard_it_is_cross_entropy_with_smoothed_labels() -> None:
    """Here the smoothing leaves out the label: a share e over C - 1 others is e C / (C - 1) over all."""
    rows = draw()
    found = FerkdTerm(Ferkd(low=0.0, middle=1.0, smoothing=0.2))(rows)
    expected = CrossEntropyTerm(CrossEntropy(label_smoothing=0.2 * CLASSES / (CLASSES - 1)))(rows)
    torch.testing.assert_close(found, expected)


def test_thresholds_may_be_shares_of_the_batch() -> None:
    confidences = [0.95, 0.5, 0.6, 0.7, 0.99]
    rows = ferkd_rows(*confidences)._replace(valid=torch.tensor([True, True, True, True, False]))
    log_p = rows.teacher
    assert log_p is not None
    term = FerkdTerm(Ferkd(thresholds="quantile", low=0.3, middle=0.6, high=0.9))
    kinds = term.calibrate(log_p, torch.zeros(5, 3, dtype=torch.bool), rows).kinds
    assert kinds[:4].tolist() == [EASY, LOST, HARD, SURE]


@pytest.mark.parametrize("spec", FERKDS)
def test_crops_that_do_not_count_change_nothing(spec: Ferkd) -> None:
    student, labels, teacher, *_ = draw(10)
    assert teacher is not None
    valid = torch.arange(10) < 7
    expected = FerkdTerm(spec)(LossInputs(student[:7], labels[:7], teacher[:7])).mean()
    found = FerkdTerm(spec)(LossInputs(student, labels, teacher, valid)).where(valid, 0.0).sum() / 7
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("spec", FERKDS)
def test_a_batch_without_any_row_that_counts_gives_zeros(spec: Ferkd) -> None:
    rows = draw()._replace(valid=torch.zeros(6, dtype=torch.bool))
    values = FerkdTerm(spec)(rows)
    assert not values.any()
    assert not gradient(values, rows.student).any()


@pytest.mark.parametrize("spec", FERKDS)
def test_the_gradient_of_calibrated_labels_is_that_of_the_value(spec: Ferkd) -> None:
    rows = draw(4)
    assert torch.autograd.gradcheck(lambda logits: FerkdTerm(spec)(rows._replace(student=logits)), rows.student)
    sums = gradient(FerkdTerm(spec)(rows), rows.student).sum(-1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", FERKDS)
def test_one_hot_labels_are_calibrated_like_indices(spec: Ferkd) -> None:
    rows = draw()
    one_hot = rows._replace(labels=F.one_hot(rows.labels, CLASSES).float())
    torch.testing.assert_close(FerkdTerm(spec)(one_hot), FerkdTerm(spec)(rows))


def test_a_mixed_label_is_smoothed_share_by_share() -> None:
    rows, spec = draw(), Ferkd(low=0.0, middle=1.0, smoothing=0.3)
    first, second = rows, rows._replace(labels=(rows.labels + 1) % CLASSES)
    expected = 0.7 * FerkdTerm(spec)(first) + 0.3 * FerkdTerm(spec)(second)
    torch.testing.assert_close(FerkdTerm(spec)(mixed(rows)), expected)


@pytest.mark.parametrize("spec", FERKDS)
def test_a_column_that_both_sides_mask_is_not_in_calibrated_labels(spec: Ferkd) -> None:
    rows = draw()
    assert rows.teacher is not None
    rows = rows._replace(labels=rows.labels.clamp(max=CLASSES - 2))
    masked, teacher = rows.student.detach().clone(), rows.teacher.clone()
    masked[:, -1], teacher[:, -1] = -torch.inf, -torch.inf
    padded = rows._replace(student=masked.requires_grad_(), teacher=teacher)
    fewer = rows._replace(student=rows.student[:, :-1], teacher=rows.teacher[:, :-1])
    torch.testing.assert_close(FerkdTerm(spec)(padded), FerkdTerm(spec)(fewer))
    found = gradient(FerkdTerm(spec)(padded), padded.student)
    torch.testing.assert_close(found, gradient(FerkdTerm(spec)(fewer), rows.student))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", FERKDS)
def test_huge_logits_are_calibrated_without_overflow(spec: Ferkd, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, -1e4, 1.0], [-1e4, 1e4, 1e4, 0.0, -1e4]], dtype=dtype)
    rows = LossInputs(logits.clone().requires_grad_(), torch.tensor([1, 0]), logits.flip(0))
    values = FerkdTerm(spec)(rows)
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    assert gradient(values, rows.student).isfinite().all()


def test_a_store_of_the_likeliest_classes_by_hand() -> None:
    columns, kept = torch.tensor([[3, 0]]), torch.tensor([[0.5, 0.3]]).double()
    offered = torch.tensor([[True, True, True, True, False]])
    spread = recover(columns, kept, offered, torch.tensor([[0.2]]).double())
    torch.testing.assert_close(spread, torch.tensor([[0.3, 0.1, 0.1, 0.5, 0.0]]).double())
    alone = recover(columns, kept, offered, None)
    torch.testing.assert_close(alone, torch.tensor([[0.375, 0.0, 0.0, 0.625, 0.0]]).double())


@pytest.mark.parametrize("rest", ["spread", "drop"])
def test_keeping_all_classes_keeps_the_teachers_label(rest: str) -> None:
    rows, full = draw(), Ferkd(low=0.0, middle=0.0)
    cut = Ferkd(low=0.0, middle=0.0, top_k=CLASSES + 3, rest=rest)
    torch.testing.assert_close(FerkdTerm(cut)(rows), FerkdTerm(full)(rows))


def test_keeping_the_likeliest_class_alone_makes_it_the_label() -> None:
    rows = draw()
    assert rows.teacher is not None
    found = FerkdTerm(Ferkd(low=0.0, middle=0.0, top_k=1, rest="drop"))(rows)
    torch.testing.assert_close(found, F.cross_entropy(rows.student, rows.teacher.argmax(-1), reduction="none"))


@pytest.mark.parametrize("thresholds", [{"low": 0.5}, {"middle": 0.9, "high": 0.8}])
def test_thresholds_in_another_order_are_refused(thresholds: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="low, middle and high must be in increasing order"):
        Ferkd(**thresholds)


def test_a_rest_of_all_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="needs top_k"):
        Ferkd(rest="drop")


def test_ferkd_raises_without_a_teacher() -> None:
    with pytest.raises(ValueError, match="teacher"):
        FerkdTerm(Ferkd())(draw()._replace(teacher=None))
