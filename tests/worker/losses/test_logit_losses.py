"""Properties of single losses: limits, identities and invariances."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.recipe import losses
from app.recipe.losses import (
    Akl,
    BdKd,
    Dist,
    Dkd,
    Jsd,
    Kd,
    LogitMse,
    LossSpec,
    Nkd,
    ReverseKl,
    SkewKl,
    SkewReverseKl,
    Softened,
)
from tests.worker.losses.samples import draw, term_of
from worker.kernels.references import dkd_parts, nkd_parts
from worker.losses.base import LossInputs
from worker.losses.divergences import AklTerm
from worker.losses.softened import prepare, soften, standardize

SOFTENED = [spec for spec in losses.LOSSES if issubclass(spec, Softened)]


def both(spec: LossSpec, rows: LossInputs) -> tuple[Tensor, Tensor]:
    """Values of the rows, and the gradient of their sum."""
    values = term_of(spec)(rows)
    (gradient,) = torch.autograd.grad(values.sum(), rows.student)
    return values.detach(), gradient


def equal_means(rows: LossInputs) -> LossInputs:
    assert rows.teacher is not None
    gap = rows.student.detach().mean(-1, keepdim=True) - rows.teacher.mean(-1, keepdim=True)
    return rows._replace(teacher=rows.teacher + gap)


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], rtol: float, atol: float) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol)


def test_kd_at_a_high_temperature_tends_to_logits_matching_when_the_means_are_equal() -> None:
    rows = equal_means(draw())
    limit = both(LogitMse(), rows)
    errors = [(both(Kd(temperature=t), rows)[0] - limit[0]).abs().max() for t in (10.0, 100.0, 1000.0)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]  # O(1 / T)
    assert_same(both(Kd(temperature=1000.0), rows), limit, rtol=1e-2, atol=1e-3)


def test_kd_at_a_high_temperature_tends_to_centred_logits_matching_whatever_the_means() -> None:
    rows = draw()
    assert_same(both(Kd(temperature=1000.0), rows), both(LogitMse(centered=True), rows), rtol=1e-2, atol=1e-3)


def test_logits_matching_pulls_at_the_mean_only_when_the_means_differ() -> None:
    rows = draw()
    sums = both(LogitMse(), equal_means(rows))[1].sum(-1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-12)
    assert (both(LogitMse(), rows)[1].sum(-1).abs() > 1e-3).all()


@pytest.mark.parametrize(
    ("spec", "same"),
    [
        (Jsd(beta=0.0, temperature=1.0), Kd(temperature=1.0)),
        (Jsd(beta=1.0, temperature=1.0), ReverseKl()),
        (SkewKl(skew=0.0), Kd(temperature=1.0)),
        (SkewReverseKl(skew=0.0), ReverseKl()),
        (Akl(mu=1.0, boundary_in_head=True), Kd(temperature=1.0)),
    ],
)
def test_at_its_limits_a_mixture_is_forward_or_reverse_kl_exactly(spec: LossSpec, same: LossSpec) -> None:
    assert_same(both(spec, draw()), both(same, draw()), rtol=0, atol=0)


def test_jsd_near_its_limits_is_proportional_to_forward_and_reverse_kl() -> None:
    rows, small = draw(), 1e-7
    near_zero, near_one = (both(Jsd(beta=beta, temperature=1.0), rows) for beta in (small, 1.0 - small))
    for found, spec in ((near_zero, Kd(temperature=1.0)), (near_one, ReverseKl())):
        torch.testing.assert_close(found[0] / small, both(spec, rows)[0], rtol=1e-3, atol=1e-6)


def test_jsd_of_one_half_is_symmetric() -> None:
    rows = draw()
    assert rows.teacher is not None
    swapped = rows._replace(student=rows.teacher.clone().requires_grad_(), teacher=rows.student.detach())
    torch.testing.assert_close(both(Jsd(), rows)[0], both(Jsd(), swapped)[0], rtol=1e-12, atol=1e-12)


def test_decoupled_parts_add_up_to_kd() -> None:
    rows = draw()
    assert rows.teacher is not None
    target, others = dkd_parts(rows.student, rows.teacher, rows.labels, 2.0)
    p = (rows.teacher / 2.0).softmax(-1).gather(-1, rows.labels.unsqueeze(-1)).squeeze(-1)
    expected = term_of(Kd(temperature=2.0))(rows) / 4.0
    torch.testing.assert_close(target + (1.0 - p) * others, expected, rtol=1e-12, atol=1e-12)


def test_dkd_of_two_classes_has_no_part_among_the_others() -> None:
    rows = draw(classes=2)
    assert_same(both(Dkd(beta=0.0), rows), both(Dkd(beta=100.0), rows), rtol=0, atol=1e-12)


def test_bd_kd_leans_forward_where_the_student_is_more_certain_than_its_teacher() -> None:
    sharp, flat = torch.tensor([[4.0, 0.0, 0.0]]).double(), torch.tensor([[0.5, 0.0, 0.0]]).double()
    for student, teacher, favoured in ((sharp, flat, Kd(temperature=1.0)), (flat, sharp, ReverseKl())):
        rows = LossInputs(student.clone().requires_grad_(), torch.tensor([0]), teacher)
        extra = both(BdKd(delta=3.0), rows)[0] - both(BdKd(delta=1.0), rows)[0]
        torch.testing.assert_close(extra, 2.0 * both(favoured, rows)[0], rtol=1e-12, atol=1e-12)


def test_bd_kd_without_a_preference_is_symmetric_kl() -> None:
    rows = draw()
    forward, reverse = both(Kd(temperature=2.0), rows), both(ReverseKl(temperature=2.0), rows)
    expected = (forward[0] + 4.0 * reverse[0], forward[1] + 4.0 * reverse[1])
    assert_same(both(BdKd(temperature=2.0, delta=1.0), rows), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spec", [Akl(), Akl(mu=0.7, boundary_in_head=True)])
def test_the_balance_of_akl_has_no_gradient(spec: Akl) -> None:
    rows = draw()
    student, teacher, _ = soften(rows, spec)
    share = AklTerm(spec).head_share(student.detach(), teacher)
    forward, reverse = both(Kd(temperature=1.0), rows), both(ReverseKl(), rows)
    mixed = share.unsqueeze(-1) * forward[1] + (1.0 - share).unsqueeze(-1) * reverse[1]
    expected = (share * forward[0] + (1.0 - share) * reverse[0], mixed)
    assert_same(both(spec, rows), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("boundary_in_head", "head"), [(False, [0]), (True, [0, 1])])
def test_the_class_that_crosses_mu_is_in_the_head_of_akl_if_set(boundary_in_head: bool, head: list[int]) -> None:
    p, q = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).double(), torch.tensor([[0.1, 0.5, 0.15, 0.25]]).double()
    gaps = (p - q).abs()
    share = AklTerm(Akl(boundary_in_head=boundary_in_head)).head_share(q.log(), p.log())
    torch.testing.assert_close(share, gaps[:, head].sum(-1) / gaps.sum(-1))


@pytest.mark.parametrize("spec", SOFTENED, ids=lambda spec: spec.__name__)
def test_standardised_logits_count_by_their_relations_only(spec: type[Softened]) -> None:
    rows, term = draw(), term_of(spec(standardize=True))
    moved = rows._replace(student=3.0 * rows.student + 7.0)
    torch.testing.assert_close(term(moved), term(rows), rtol=1e-5, atol=1e-7)  # 1e-7 is added to the deviation
    assert not torch.allclose(term_of(spec())(moved), term_of(spec())(rows), rtol=1e-2)


def test_standardised_rows_have_mean_0_and_deviation_1_over_their_unmasked_columns() -> None:
    logits = torch.tensor([[1.0, 2.0, 6.0, -torch.inf]]).double()
    found = standardize(logits)
    torch.testing.assert_close(found[:, :3], (logits[:, :3] - 3.0) / logits[:, :3].std(), rtol=1e-6, atol=1e-6)
    assert found[0, 3] == -torch.inf


def test_standardising_a_constant_row_gives_zeros_and_a_finite_gradient() -> None:
    logits = torch.full((1, 4), 2.0, requires_grad=True)
    found = standardize(logits)
    (gradient,) = torch.autograd.grad(found.square().sum(), logits)
    assert not found.any()
    assert gradient.isfinite().all()


def test_dist_is_zero_for_predictions_that_are_the_teachers() -> None:
    rows = draw()
    same = rows._replace(teacher=rows.student.detach().clone())
    values, gradient = both(Dist(), same)
    torch.testing.assert_close(values, torch.zeros(6).double(), rtol=0, atol=1e-5)  # 1e-8 is added to the norms
    torch.testing.assert_close(gradient, torch.zeros(6, 5).double(), rtol=0, atol=1e-5)


def test_dist_of_a_single_row_has_no_relation_between_rows() -> None:
    rows = draw(rows=1)
    within, both_parts = both(Dist(gamma=0.0), rows), both(Dist(gamma=2.0), rows)
    torch.testing.assert_close(both_parts[0], within[0] + 2.0)
    torch.testing.assert_close(both_parts[1], within[1])


def test_the_targets_of_the_three_levels_sum_to_one() -> None:
    """A student of equal logits pays log C for any distribution."""
    rows = draw()._replace(student=torch.zeros(6, 5).double().requires_grad_())
    for spec in (
        losses.KdPt(temperature=1.0),
        losses.KdSim(),
        losses.KdTopk(temperature=1.0, k=2),
        losses.KdTopk(temperature=1.0, k=9),
        losses.KdRel(parents=[0, 1, 0, 1, 2]),
        losses.KdRel(parents=[0, 0, 0, 0, 0]),
    ):
        torch.testing.assert_close(both(spec, rows)[0], torch.full((6,), 5.0).double().log())


def test_all_classes_kept_is_kd_without_the_teachers_entropy() -> None:
    rows = draw()
    torch.testing.assert_close(
        both(losses.KdTopk(k=5), rows)[1], both(Kd(temperature=2.0), rows)[1], rtol=1e-12, atol=1e-12
    )


def test_similarity_with_a_small_tau_is_cross_entropy_with_the_label() -> None:
    rows = draw()
    assert_same(both(losses.KdSim(tau=1e-3), rows), both(losses.CrossEntropy(), rows), rtol=1e-9, atol=1e-9)


def test_mass_for_siblings_that_do_not_exist_stays_on_the_label() -> None:
    rows = draw()
    lonely = losses.KdRel(parents=[0, 1, 2, 3, 4], siblings=0.5, others=0.0)
    assert_same(both(lonely, rows), both(losses.CrossEntropy(), rows), rtol=1e-12, atol=1e-12)


def test_masses_of_a_hierarchy_can_not_exceed_one_together() -> None:
    with pytest.raises(ValueError, match="must be at most 1"):
        losses.KdRel(parents=[0, 1], siblings=0.6, others=0.5)


@pytest.mark.parametrize("spec", [Nkd(), Dkd(), Dkd(standardize=True)])
@pytest.mark.parametrize("masks", ["student", "teacher", "both"])
def test_if_only_the_target_is_offered_the_other_classes_have_no_effect(spec: Nkd | Dkd, masks: str) -> None:
    rows = draw()
    assert rows.teacher is not None
    others = torch.nn.functional.one_hot(rows.labels, rows.teacher.shape[1]) == 0
    student, teacher = (side.detach().masked_fill(others, -torch.inf) for side in (rows.student, rows.teacher))
    student = rows.student.detach() if masks == "teacher" else student
    teacher = rows.teacher if masks == "student" else teacher
    rows = rows._replace(student=student.requires_grad_(), teacher=teacher)
    parts = nkd_parts if isinstance(spec, Nkd) else dkd_parts
    sides = prepare(rows, standardized=getattr(spec, "standardize", False))
    assert parts(*sides, rows.labels, spec.temperature)[1].eq(0.0).all()
    assert all(part.isfinite().all() for part in both(spec, rows))
