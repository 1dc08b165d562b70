"""The objective: one count divides everything, however a batch is split."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.recipe.losses import CrossEntropy, Kd, LossTerm, Nkd
from tests.worker.losses.samples import SPECS, draw
from worker.losses.base import IGNORED
from worker.losses.objective import Objective, unique_names

MIXED: list[LossTerm] = [CrossEntropy(weight=0.5), Kd(weight=2.0), Nkd()]


def loss_and_gradient(objective: Objective, parts: int) -> tuple[Tensor, Tensor]:
    rows = draw(10)
    assert rows.teacher is not None
    rows.labels[3] = IGNORED
    count = objective.count(rows.labels)
    pieces = zip(*(side.tensor_split(parts) for side in (rows.student, rows.labels, rows.teacher)), strict=True)
    loss = torch.stack([objective(*piece, count, rows.head)["loss"] for piece in pieces]).sum()
    (gradient,) = torch.autograd.grad(loss, rows.student)
    return loss.detach(), gradient


@pytest.mark.parametrize("parts", [2, 3, 10])
def test_splitting_a_batch_changes_neither_loss_nor_gradient(parts: int) -> None:
    objective = Objective([spec for spec in SPECS if not spec.couples_rows])
    for split, whole in zip(loss_and_gradient(objective, parts), loss_and_gradient(objective, 1), strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-12, atol=1e-13)


def test_a_loss_that_says_that_it_couples_rows_does_change_when_a_batch_is_split() -> None:
    for spec in SPECS:
        split, whole = (loss_and_gradient(Objective([spec]), parts)[0] for parts in (2, 1))
        assert torch.allclose(split, whole, rtol=1e-6) != spec.couples_rows


def test_total_is_the_weighted_sum_of_the_named_terms() -> None:
    rows, objective = draw(), Objective(MIXED)
    values = objective(rows.student, rows.labels, rows.teacher, objective.count(rows.labels))
    assert list(values) == ["loss", "loss/cross-entropy", "loss/kd", "loss/nkd"]
    expected = 0.5 * values["loss/cross-entropy"] + 2.0 * values["loss/kd"] + values["loss/nkd"]
    torch.testing.assert_close(values["loss"], expected)


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_ignored_rows_change_nothing(spec: LossTerm) -> None:
    student, labels, teacher, _, head = draw(10)
    assert teacher is not None
    objective = Objective([spec])
    expected = objective(student[:7], labels[:7], teacher[:7], objective.count(labels[:7]), head)["loss"]
    labels[7:] = IGNORED
    found = objective(student, labels, teacher, objective.count(labels), head)["loss"]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.autograd.grad(found, student)[0][7:].any()


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_a_batch_of_ignored_rows_gives_zero_and_no_gradient(spec: LossTerm) -> None:
    student, labels, teacher, _, head = draw()
    labels[:] = IGNORED
    objective = Objective([spec])
    loss = objective(student, labels, teacher, objective.count(labels), head)["loss"]
    (gradient,) = torch.autograd.grad(loss, student)
    assert float(loss.detach()) == 0.0
    assert not gradient.any()


def test_terms_of_the_same_kind_have_names_of_their_own() -> None:
    assert unique_names(["kd", "nkd", "kd"]) == ["kd-1", "nkd", "kd-2"]
