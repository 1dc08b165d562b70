"""Losses of binary labels: compared with the library, their limits, and that classes are independent."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import BinaryCrossEntropy, BinaryKd, LogitMse, Loss
from worker.losses import build_term
from worker.losses import multi_label as module
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.objective import BatchOutputs, Objective
from worker.tensors import IGNORED

CLASSES = 5
BINARY = [
    BinaryCrossEntropy(),
    BinaryCrossEntropy(pos_weight=3.0),
    BinaryCrossEntropy(label_smoothing=0.2, pos_weight=0.5),
]
SPECS: list[Loss] = [
    *BINARY,
    BinaryKd(),
    BinaryKd(temperature=4.0),
    LogitMse(),
]
TAUGHT = [spec for spec in SPECS if spec.needs_teacher]


def named(spec: Loss) -> str:
    """The beginning of a test's id."""
    return spec.kind


def draw(rows: int = 6, dtype: torch.dtype = torch.float64) -> LossInputs:
    random = torch.Generator().manual_seed(0)
    student, teacher = (2.0 * torch.randn(rows, CLASSES, generator=random, dtype=dtype) for _ in range(2))
    labels = (torch.rand(rows, CLASSES, generator=random) < 0.4).float()
    return LossInputs(student.requires_grad_(), labels, teacher)


def value(spec: Loss, rows: LossInputs) -> Tensor:
    return build_term(spec, LossBuilder({}, {}, CLASSES))(rows)


def gradient(spec: Loss, rows: LossInputs) -> Tensor:
    (found,) = torch.autograd.grad(value(spec, rows).sum(), rows.student)
    return found


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("pos_weight", [1.0, 3.0])
def test_binary_cross_entropy_equals_the_librarys(pos_weight: float, soft: bool) -> None:
    rows = draw()
    labels = rows.labels.double() * 0.7 + 0.1 if soft else rows.labels.double()
    found = value(BinaryCrossEntropy(pos_weight=pos_weight), rows._replace(labels=labels))
    weights = torch.full((CLASSES,), pos_weight, dtype=torch.float64)
    wanted = F.binary_cross_entropy_with_logits(rows.student, labels, reduction="none", pos_weight=weights).mean(-1)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_smoothing_moves_labels_towards_one_half() -> None:
    rows = draw()
    moved = rows._replace(labels=0.8 * rows.labels.double() + 0.1)
    found = value(BinaryCrossEntropy(label_smoothing=0.2), rows)
    torch.testing.assert_close(found, value(BinaryCrossEntropy(), moved), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_binary_kd_is_kl_between_distributions_of_two_classes(temperature: float) -> None:
    rows = draw()
    assert rows.teacher is not None
    both = [torch.stack([side, torch.zeros_like(side)], -1) / temperature for side in (rows.student, rows.teacher)]
    student, teacher = (side.log_softmax(-1) for side in both)
    wanted = temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1).mean(-1)
    torch.testing.assert_close(value(BinaryKd(temperature=temperature), rows), wanted, rtol=1e-11, atol=1e-12)


def test_at_a_high_temperature_binary_kd_is_a_quarter_of_logits_matching() -> None:
    rows = draw()
    found, wanted = gradient(BinaryKd(temperature=1000.0), rows), gradient(LogitMse(), rows) / 4
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS, ids=named)
def test_gradient_is_that_of_the_value(spec: Loss) -> None:
    rows = draw(3)
    assert torch.autograd.gradcheck(lambda logits: value(spec, rows._replace(student=logits)), rows.student)


@pytest.mark.parametrize("spec", SPECS, ids=named)
def test_a_class_does_not_depend_on_another(spec: Loss) -> None:
    rows = draw()
    changed = rows.student.detach().clone()
    changed[:, 0] += 3.0
    found = gradient(spec, rows._replace(student=changed.requires_grad_()))
    torch.testing.assert_close(found[:, 1:], gradient(spec, rows)[:, 1:], rtol=0, atol=0)


@pytest.mark.parametrize("spec", TAUGHT, ids=named)
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(spec: Loss) -> None:
    rows = draw()
    same = rows._replace(teacher=rows.student.detach().clone())
    torch.testing.assert_close(value(spec, same).detach(), torch.zeros(6).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(spec, same), torch.zeros(6, CLASSES).double(), rtol=0, atol=1e-12)
    assert (value(spec, rows) > 0.0).all()


@pytest.mark.parametrize("spec", SPECS, ids=named)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_logits_stay_finite(spec: Loss, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, -1e4, 1.0], [-1e4, 1e4, 1e4, 0.0, -1e4]], dtype=dtype)
    rows = LossInputs(
        logits.clone().requires_grad_(), torch.tensor([[1.0, 1, 0, 0, 1], [1, 0, 0, 1, 1]]), logits.flip(0)
    )
    assert value(spec, rows).isfinite().all()
    assert gradient(spec, rows).isfinite().all()


@pytest.mark.parametrize("spec", SPECS, ids=named)
def test_half_precision_is_computed_in_float32(spec: Loss) -> None:
    coarse = draw(dtype=torch.bfloat16)
    assert coarse.teacher is not None
    fine = coarse._replace(student=coarse.student.float(), teacher=coarse.teacher.float())
    assert value(spec, coarse).dtype == torch.float32
    torch.testing.assert_close(value(spec, coarse), value(spec, fine), rtol=0, atol=0)


@pytest.mark.parametrize("spec", SPECS[:3], ids=named)
def test_parts_of_a_batch_add_up(spec: Loss) -> None:
    rows, objective = draw(), Objective([spec], LossBuilder({}, {}, CLASSES))
    count = objective.count(rows.labels)
    parts = [
        objective(BatchOutputs(rows.student[part], rows.labels[part], {}), count)["loss"]
        for part in (slice(0, 2), slice(2, 6))
    ]
    assert int(count) == 6
    torch.testing.assert_close(sum(parts), value(spec, rows).mean())


@pytest.mark.parametrize("spec", BINARY)
@pytest.mark.parametrize("at_once", [1, 4, 2**14])
def test_lists_of_labels_have_the_loss_of_0_and_1(
    spec: BinaryCrossEntropy, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LABELS_AT_ONCE", at_once)
    positives = torch.tensor([[0, 3, 6], [2, IGNORED, IGNORED], [IGNORED] * 3, [5, 6, IGNORED]], dtype=torch.int32)
    labels = torch.zeros(4, 7, dtype=torch.float64)
    for row, listed in enumerate(positives):
        labels[row, listed[listed != IGNORED].long()] = 1.0
    logits = torch.linspace(-9, 9, 28, dtype=torch.float64).view(7, 4).T.clone().requires_grad_()
    term = module.BinaryCrossEntropyTerm(spec)
    found, wanted = (term(LossInputs(logits, each, None)) for each in (positives, labels))
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
    gradients = [torch.autograd.grad(each.sum(), logits)[0] for each in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(lambda given: term(LossInputs(given, positives, None)), logits)


def test_lists_of_labels_stay_finite_for_huge_logits() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = module.BinaryCrossEntropyTerm(BINARY[1])(LossInputs(logits, torch.tensor([[1]], dtype=torch.int32), None))
    loss.sum().backward()
    assert logits.grad is not None
    assert bool(loss.isfinite() & logits.grad.isfinite().all())
