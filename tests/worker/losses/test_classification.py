"""Losses of classifiers with the labels alone: limits, bounds, invariances, and what masked rows change."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.losses import CompSum, CrossEntropy, L2Svm, Ldr, Loss, LossSpec, ZLoss
from tests.worker.losses.samples import CLASSES, draw, term_of
from worker.errors import UserError
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.objective import BatchOutputs, Objective

SPECS: list[Loss] = [
    ZLoss(),
    ZLoss(a=0.3, b=4.0),
    *(CompSum(tau=tau) for tau in (0.0, 0.5, 1.0, 1.5, 2.0)),
    CompSum(tau=1.7, rho=3.0),
    Ldr(),
    Ldr(kl_weight=0.3, margin=2.0),
    Ldr(scores="logits", margin=0.0),
    L2Svm(regularisation=0.0),
    L2Svm(regularisation=0.0, hinge="absolute", margin=0.5, c=3.0),
    L2Svm(regularisation=0.0, form="crammer-singer"),
]
every_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: repr(spec)[:48])


def gradient(spec: LossSpec, rows: LossInputs) -> Tensor:
    (found,) = torch.autograd.grad(term_of(spec)(rows).sum(), rows.student)
    return found


def share(spec: Loss, logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of a batch, through the objective."""
    objective = Objective([spec], LossBuilder({}, {}, logits.shape[1]))
    return objective(BatchOutputs(logits, targets, {}), objective.count(targets))["loss"]


@every_spec
def test_gradient_is_that_of_the_value(spec: Loss) -> None:
    rows = draw(3)
    assert torch.autograd.gradcheck(lambda logits: term_of(spec)(rows._replace(student=logits)), rows.student)


@every_spec
def test_masked_rows_change_nothing_and_have_no_gradient(spec: Loss) -> None:
    rows = draw()
    logits = torch.cat((rows.student.detach(), torch.tensor([[0.0] * CLASSES, [1e30] + [-1e30] * (CLASSES - 1)])))
    logits.requires_grad_()
    targets = torch.cat((rows.labels, torch.tensor([-100, -100])))
    value, alone = share(spec, logits, targets), share(spec, rows.student, rows.labels)
    torch.testing.assert_close(value, alone, rtol=1e-14, atol=0)
    (found,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(found[:-2], torch.autograd.grad(alone, rows.student)[0], rtol=1e-14, atol=0)
    assert not found[-2:].any()


@every_spec
def test_a_batch_of_masked_rows_is_zero_with_zero_gradient(spec: Loss) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    value = share(spec, logits, torch.tensor([-100, -100]))
    assert float(value.detach()) == 0.0
    assert not torch.autograd.grad(value, logits)[0].any()


@every_spec
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_and_equal_logits_stay_finite(spec: Loss, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [2.0, 2.0, 2.0], [-300.0, -300.0, -299.0]], dtype=dtype)
    rows = LossInputs(logits.requires_grad_(), torch.tensor([1, 0, 2, 0]), None)
    assert term_of(spec, 3)(rows).isfinite().all()
    assert gradient(spec, rows).isfinite().all()


@every_spec
def test_half_precision_logits_are_computed_in_float32(spec: Loss) -> None:
    coarse = draw(dtype=torch.bfloat16)
    value = term_of(spec)(coarse)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, term_of(spec)(coarse._replace(student=coarse.student.float())), rtol=0, atol=0)


@every_spec
def test_one_hot_labels_count_like_indices(spec: Loss) -> None:
    rows = draw()
    one_hot = F.one_hot(rows.labels, CLASSES).double()
    torch.testing.assert_close(term_of(spec)(rows._replace(labels=one_hot)), term_of(spec)(rows))


@pytest.mark.parametrize("spec", [ZLoss(a=0.5, b=2.0), CompSum(tau=1.5)])
def test_probabilities_as_labels_weigh_the_losses_of_their_classes(spec: Loss) -> None:
    rows = draw()
    first, second = (term_of(spec)(rows._replace(labels=torch.full((6,), label))) for label in (0, 3))
    labels = torch.zeros(6, CLASSES, dtype=torch.float64)
    labels[:, 0], labels[:, 3] = 0.25, 0.75
    torch.testing.assert_close(term_of(spec)(rows._replace(labels=labels)), 0.25 * first + 0.75 * second)


@pytest.mark.parametrize("spec", [ZLoss(), ZLoss(a=2.0, b=1.5)])
def test_z_loss_sees_neither_the_mean_nor_the_scale_of_a_row(spec: ZLoss) -> None:
    rows = draw()
    moved = rows._replace(student=3.5 * rows.student + 7.0)
    torch.testing.assert_close(term_of(spec)(moved), term_of(spec)(rows), rtol=1e-9, atol=0)
    found = gradient(spec, rows)
    for sums in (found.sum(-1), (found * rows.student).sum(-1)):
        torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-12)


def test_z_loss_of_far_logits_keeps_its_digits_in_float32() -> None:
    exact = draw(scale=1.0).student.detach()
    far = (exact + 4096.0).float()
    labels = draw().labels
    found = term_of(ZLoss())(LossInputs(far, labels, None))
    expected = term_of(ZLoss())(LossInputs(far.double(), labels, None))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_z_loss_of_equal_logits_is_that_of_zero_without_a_gradient() -> None:
    rows = draw()._replace(student=torch.full((6, CLASSES), 3.0, dtype=torch.float64, requires_grad=True))
    expected = torch.full((6,), math.log1p(math.exp(2.0 * 1.5)) / 2.0, dtype=torch.float64)
    torch.testing.assert_close(term_of(ZLoss(a=2.0, b=1.5))(rows).detach(), expected)
    assert not gradient(ZLoss(a=2.0, b=1.5), rows).any()


def test_z_loss_of_two_classes_is_refused_when_it_is_built() -> None:
    builder = LossBuilder({}, {}, 2)
    with pytest.raises(UserError, match="z-loss is not for 2 classes; accepted: 3 classes or more") as raised:
        Objective([ZLoss()], builder)
    assert raised.value.param == "recipe.losses[0].kind"


def test_comp_sum_has_its_known_members() -> None:
    rows = draw()
    p = rows.student.detach().softmax(-1).gather(-1, rows.labels.unsqueeze(-1)).squeeze(-1)
    known = {0.0: 1 / p - 1, 1.0: -p.log(), 1.7: (1 - p**0.7) / 0.7, 2.0: 1 - p}
    for tau, expected in known.items():
        torch.testing.assert_close(term_of(CompSum(tau=tau))(rows).detach(), expected)
    torch.testing.assert_close(term_of(CompSum())(rows), term_of(CrossEntropy())(rows))


def test_comp_sum_near_cross_entropy_tends_to_it() -> None:
    rows = draw()
    limit = term_of(CrossEntropy())(rows)
    errors = [(term_of(CompSum(tau=1.0 + gap))(rows) - limit).abs().max() for gap in (1e-3, -1e-3, 1e-6, -1e-6)]
    assert max(errors[2:]) < 1e-3 * 2 * min(errors[:2])


@pytest.mark.parametrize("tau", [1.25, 1.5, 2.0])
def test_comp_sum_above_cross_entropy_is_bounded(tau: float) -> None:
    values = term_of(CompSum(tau=tau))(draw(scale=50.0))
    assert (values >= 0.0).all()
    assert (values <= 1.0 / (tau - 1.0)).all()


def test_rho_divides_the_logits() -> None:
    rows = draw()
    cooler = rows._replace(student=rows.student / 3.0)
    torch.testing.assert_close(term_of(CompSum(tau=1.4, rho=3.0))(rows), term_of(CompSum(tau=1.4))(cooler))


def test_ldr_of_logits_without_a_margin_is_cross_entropy_less_log_c() -> None:
    rows = draw()
    expected = term_of(CrossEntropy())(rows) - math.log(CLASSES)
    torch.testing.assert_close(term_of(Ldr(scores="logits", margin=0.0))(rows), expected)


def test_ldr_of_a_small_weight_is_the_margin_loss_of_crammer_and_singer() -> None:
    rows = draw()
    logits, labels = rows.student.detach(), rows.labels.unsqueeze(-1)
    gaps = logits - logits.gather(-1, labels) + torch.full_like(logits, 0.7).scatter(-1, labels, 0.0)
    found = term_of(Ldr(scores="logits", margin=0.7, kl_weight=1e-4))(rows).detach()
    torch.testing.assert_close(found, gaps.amax(-1), rtol=0, atol=1e-4 * math.log(CLASSES) + 1e-12)


def test_ldr_of_a_tie_is_the_mean_margin_at_most() -> None:
    rows = draw()._replace(student=torch.zeros(6, CLASSES, dtype=torch.float64))
    assert (term_of(Ldr(margin=0.0))(rows).abs() < 1e-12).all()
    large = term_of(Ldr(margin=0.5, kl_weight=1e6))(rows)
    torch.testing.assert_close(large, torch.full_like(large, 0.5 * (CLASSES - 1) / CLASSES), rtol=1e-5, atol=0)


def test_l2_svm_without_errors_leaves_the_weights_alone_to_pay() -> None:
    head = nn.Linear(3, CLASSES).double()
    labels = torch.arange(CLASSES)
    logits = (2.0 * F.one_hot(labels, CLASSES) - 1.0).double().requires_grad_()
    objective = Objective([L2Svm(regularisation=0.5)], LossBuilder({}, {}, CLASSES, student_head=head))
    loss = objective(BatchOutputs(logits, labels, {}), objective.count(labels))["loss"]
    torch.testing.assert_close(loss, 0.5 * head.weight.square().mean())
    by_logits, by_weight = torch.autograd.grad(loss, (logits, head.weight))
    assert not by_logits.any()
    torch.testing.assert_close(by_weight, head.weight.detach() / head.weight.numel())


def test_the_weights_of_an_svm_count_once_however_a_batch_is_split() -> None:
    rows, head = draw(), nn.Linear(3, CLASSES).double()
    objective = Objective([L2Svm()], LossBuilder({}, {}, CLASSES, student_head=head))
    labels = torch.cat((rows.labels[:-1], torch.tensor([-100])))
    whole = objective(BatchOutputs(rows.student, labels, {}), objective.count(labels))["loss"]
    parts = [
        objective(BatchOutputs(rows.student[part], labels[part], {}), objective.count(labels))["loss"]
        for part in (slice(2), slice(2, 6))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)
    (gradient,) = torch.autograd.grad(parts[0] + parts[1], head.weight)
    torch.testing.assert_close(gradient, 2.0 * head.weight.detach() / head.weight.numel())


def test_an_svm_without_known_weights_is_refused_when_it_is_built() -> None:
    with pytest.raises(UserError, match="no last linear layer"):
        Objective([L2Svm()], LossBuilder({}, {}, CLASSES))
