"""The objective: all terms are divided by one count, however a batch is split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from app.recipe.losses import Akl, CrossEntropy, Dist, Kd, Loss, Nkd
from app.recipe.losses.weights import LinearWeight
from app.recipe.teachers.teacher import Teacher
from tests.worker.losses.samples import CLASSES, SPECS, draw, term_of
from worker.kernels.rows import row_loss
from worker.kernels.spec import RowLosses
from worker.losses import objective as module
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.objective import BatchOutputs, Objective, unique_names
from worker.outputs import TeacherSignal
from worker.tensors import IGNORED

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
MIXED: list[Loss] = [CrossEntropy(weight=0.5), Kd(weight=2.0), Nkd()]


def objective_of(specs: Sequence[Loss], **settings: Any) -> Objective:
    teachers = settings.pop("teachers", [Teacher(model="m")])
    return Objective(specs, LossBuilder({}, {}, CLASSES), teachers, **settings)


def seen(student: Tensor, labels: Tensor, teacher: Tensor, head: Tensor | None = None) -> BatchOutputs:
    return BatchOutputs(student, labels, {"teacher": TeacherSignal(teacher, head)})


def loss_and_gradient(objective: Objective, parts: int) -> tuple[Tensor, Tensor]:
    rows = draw(10)
    assert rows.teacher is not None
    rows.labels[3] = IGNORED
    count = objective.count(rows.labels)
    pieces = zip(*(side.tensor_split(parts) for side in (rows.student, rows.labels, rows.teacher)), strict=True)
    loss = torch.stack([objective(seen(*piece, rows.head), count)["loss"] for piece in pieces]).sum()
    (gradient,) = torch.autograd.grad(loss, rows.student)
    return loss.detach(), gradient


@pytest.mark.parametrize("parts", [2, 3, 10])
def test_splitting_a_batch_changes_neither_loss_nor_gradient(parts: int) -> None:
    objective = objective_of([spec for spec in SPECS if not spec.couples_rows])
    for split, whole in zip(loss_and_gradient(objective, parts), loss_and_gradient(objective, 1), strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-12, atol=1e-13)


def test_a_loss_that_declares_coupled_rows_changes_when_a_batch_is_split() -> None:
    for spec in SPECS:
        split, whole = (loss_and_gradient(objective_of([spec]), parts)[0] for parts in (2, 1))
        assert torch.allclose(split, whole, rtol=1e-6) != spec.couples_rows


def test_total_is_the_weighted_sum_of_the_named_terms() -> None:
    rows, objective = draw(), objective_of(MIXED)
    assert rows.teacher is not None
    values = objective(seen(rows.student, rows.labels, rows.teacher), objective.count(rows.labels))
    assert list(values) == ["loss", "loss/cross-entropy", "loss/kd", "loss/nkd"]
    expected = 0.5 * values["loss/cross-entropy"] + 2.0 * values["loss/kd"] + values["loss/nkd"]
    torch.testing.assert_close(values["loss"], expected)


@pytest.mark.parametrize("spec", SPECS)
def test_ignored_rows_change_nothing(spec: Loss) -> None:
    student, labels, teacher, _, head, *_ = draw(10)
    assert teacher is not None
    objective = objective_of([spec])
    expected = objective(seen(student[:7], labels[:7], teacher[:7], head), objective.count(labels[:7]))["loss"]
    labels[7:] = IGNORED
    found = objective(seen(student, labels, teacher, head), objective.count(labels))["loss"]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.autograd.grad(found, student)[0][7:].any()


@pytest.mark.parametrize("spec", SPECS)
def test_a_batch_of_ignored_rows_gives_zero_and_no_gradient(spec: Loss) -> None:
    student, labels, teacher, _, head, *_ = draw()
    labels[:] = IGNORED
    objective = objective_of([spec])
    loss = objective(seen(student, labels, teacher, head), objective.count(labels))["loss"]
    (gradient,) = torch.autograd.grad(loss, student)
    assert float(loss.detach()) == 0.0
    assert not gradient.any()


def test_terms_of_the_same_kind_have_names_of_their_own() -> None:
    assert unique_names(["kd", "nkd", "kd"]) == ["kd-1", "nkd", "kd-2"]


def two_sides() -> tuple[BatchOutputs, BatchOutputs, BatchOutputs]:
    """The outputs of one teacher, of another, and of both."""
    rows = draw(dtype=torch.float32)
    assert rows.teacher is not None
    one, other = TeacherSignal(rows.teacher), TeacherSignal(3.0 * rows.teacher.flip(0))
    sides = ({"one": one}, {"other": other}, {"one": one, "other": other})
    first, second, both = (BatchOutputs(rows.student, rows.labels, signals) for signals in sides)
    return first, second, both


TEACHERS = [Teacher(model="a", name="one", weight=3.0), Teacher(model="b", name="other", weight=1.0)]


def value(seen: BatchOutputs, spec: Loss, **settings: Any) -> Tensor:
    objective = objective_of([spec], **settings)
    return objective(seen, objective.count(seen.targets))["loss"].detach()


def test_several_teachers_share_a_loss_by_their_weights() -> None:
    first, second, both = two_sides()
    alone = [value(seen, Kd(), teachers=[teacher]) for seen, teacher in zip((first, second), TEACHERS, strict=True)]
    torch.testing.assert_close(value(both, Kd(), teachers=TEACHERS), 0.75 * alone[0] + 0.25 * alone[1])


def test_a_loss_may_name_its_teacher() -> None:
    _, second, both = two_sides()
    expected = value(second, Kd(), teachers=TEACHERS[1:])
    torch.testing.assert_close(value(both, Kd(teacher="other"), teachers=TEACHERS), expected)


def test_a_teacher_that_is_surer_of_a_sample_may_weigh_more() -> None:
    _, _, both = two_sides()
    losses, logs = [], []
    for name, signal in both.signals.items():
        term = term_of(Kd(teacher=name))
        losses.append(term(LossInputs(both.outputs, both.targets, signal.logits)).detach())
        logs.append(signal.logits.log_softmax(-1))
    certainty = torch.stack([(log.exp() * log).sum(-1).exp() for log in logs])
    weights = certainty * torch.tensor([[3.0], [1.0]])
    expected = (weights / weights.sum(0) * torch.stack(losses)).sum(0).mean()
    torch.testing.assert_close(value(both, Kd(), teachers=TEACHERS, weighting="entropy"), expected)


def test_a_weight_may_change_while_training_goes_on() -> None:
    rows = draw()
    assert rows.teacher is not None
    ramp = LinearWeight(kind="linear", first=0.0, last=2.0, from_epoch=1.0, to_epoch=3.0)
    objective = objective_of([Kd(weight=ramp)])
    count = objective.count(rows.labels)
    values = [objective(seen(rows.student, rows.labels, rows.teacher), count, epoch, 10.0) for epoch in (0.0, 2.0, 9.0)]
    assert [(said["loss"] / said["loss/kd"]).item() for said in values] == pytest.approx([0.0, 1.0, 2.0])


SOME = {
    "both": [CrossEntropy(weight=0.5, label_smoothing=0.1), Kd(weight=2.0, temperature=3.0)],
    "several": [
        Nkd(),
        CrossEntropy(weight=0.5),
        Kd(weight=LinearWeight(kind="linear", first=1.0, last=0.5)),
        Dist(),
        Kd(temperature=2.0),
    ],
    "divergence alone": [Kd()],
    "labels alone": [CrossEntropy()],
    "nothing that kernels know": [Dist(), Akl()],
}


@pytest.mark.parametrize("specs", SOME.values(), ids=SOME)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_row_kernels_give_what_the_terms_give(monkeypatch: pytest.MonkeyPatch, specs: list[Loss], device: str) -> None:
    rows, passes = draw(10), 0
    assert rows.teacher is not None
    rows.labels[3] = IGNORED
    teachers = [Teacher(model="m", name="one"), Teacher(model="m", name="two", weight=3.0)]
    signals = {"one": rows.teacher, "two": rows.teacher.flip(0) * 2.0}
    objective = objective_of(specs, teachers=teachers)
    found = []
    for kernels in (False, True):
        monkeypatch.setattr(module, "runs_on_triton", lambda logits, kernels=kernels: kernels)
        monkeypatch.setattr(module, "row_loss", counted := Counted())
        leaf = rows.student.detach().to(device).requires_grad_()
        told = {name: TeacherSignal(logits.to(device)) for name, logits in signals.items()}
        values = objective(
            BatchOutputs(leaf, rows.labels.to(device), told), objective.count(rows.labels.to(device)), 1.0, 4.0
        )
        values["loss"].backward()
        assert leaf.grad is not None
        found.append({**{name: value.detach().cpu() for name, value in values.items()}, "gradient": leaf.grad.cpu()})
        passes = counted.calls
    assert list(found[0]) == list(found[1])
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-11)
    plain, taught = (sum(isinstance(spec, kinds) for spec in specs) for kinds in (CrossEntropy, (Kd, Nkd)))
    assert passes == max(plain, 2 * taught)


def test_terms_of_weight_0_are_still_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, objective = (
        draw(),
        objective_of([CrossEntropy(), Kd(weight=LinearWeight(kind="linear", first=0.0, last=1.0))]),
    )
    assert rows.teacher is not None
    monkeypatch.setattr(module, "runs_on_triton", lambda logits: True)
    assert objective(seen(rows.student, rows.labels, rows.teacher), objective.count(rows.labels))["loss/kd"] > 0.0


@NEEDS_GPU
def test_a_gpu_takes_one_launch_of_a_kernel_for_labels_and_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, objective = draw(), objective_of([CrossEntropy(), Kd()])
    assert rows.teacher is not None
    monkeypatch.setattr(module, "row_loss", counted := Counted())
    told = {"teacher": TeacherSignal(rows.teacher.float().cuda())}
    given = BatchOutputs(rows.student.detach().float().cuda().requires_grad_(), rows.labels.cuda(), told)
    loss = objective(given, objective.count(given.targets))["loss"]
    expected = objective(seen(rows.student, rows.labels, rows.teacher), objective.count(rows.labels))["loss"]
    torch.testing.assert_close(loss.double().cpu(), expected, rtol=1e-4, atol=1e-5)
    assert counted.calls == 1


class Counted:
    """`row_loss`, and how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *arguments: Any, **settings: Any) -> RowLosses:
        self.calls += 1
        return row_loss(*arguments, **settings)
