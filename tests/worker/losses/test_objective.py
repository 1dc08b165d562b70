"""The objective: one count divides everything, however a batch is split."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.recipe.losses import CrossEntropy, Kd, LossTerm, Nkd
from worker.losses.base import IGNORED
from worker.losses.objective import Objective, unique_names

MIXED: list[LossTerm] = [CrossEntropy(weight=0.5), Kd(weight=2.0), Nkd()]


def draw(rows: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(rows, 4, generator=random, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), torch.randint(4, (rows,), generator=random), teacher


def loss_and_gradient(objective: Objective, parts: int) -> tuple[Tensor, Tensor]:
    student, labels, teacher = draw()
    labels[3] = IGNORED
    count = objective.count(labels)
    pieces = zip(student.tensor_split(parts), labels.tensor_split(parts), teacher.tensor_split(parts), strict=True)
    loss = torch.stack([objective(*piece, count)["loss"] for piece in pieces]).sum()
    (gradient,) = torch.autograd.grad(loss, student)
    return loss.detach(), gradient


@pytest.mark.parametrize("parts", [2, 3, 10])
def test_splitting_a_batch_changes_neither_loss_nor_gradient(parts: int) -> None:
    objective = Objective(MIXED)
    for split, whole in zip(loss_and_gradient(objective, parts), loss_and_gradient(objective, 1), strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-12, atol=1e-14)


def test_total_is_the_weighted_sum_of_the_named_terms() -> None:
    student, labels, teacher = draw()
    objective = Objective(MIXED)
    values = objective(student, labels, teacher, objective.count(labels))
    assert list(values) == ["loss", "loss/cross-entropy", "loss/kd", "loss/nkd"]
    expected = 0.5 * values["loss/cross-entropy"] + 2.0 * values["loss/kd"] + values["loss/nkd"]
    torch.testing.assert_close(values["loss"], expected)


@pytest.mark.parametrize("spec", MIXED, ids=repr)
def test_ignored_rows_change_nothing(spec: LossTerm) -> None:
    student, labels, teacher = draw()
    objective = Objective([spec])
    expected = objective(student[:7], labels[:7], teacher[:7], objective.count(labels[:7]))["loss"]
    labels[7:] = IGNORED
    torch.testing.assert_close(objective(student, labels, teacher, objective.count(labels))["loss"], expected)


@pytest.mark.parametrize("spec", MIXED, ids=repr)
def test_a_batch_of_ignored_rows_gives_zero_and_no_gradient(spec: LossTerm) -> None:
    student, labels, teacher = draw()
    labels[:] = IGNORED
    objective = Objective([spec])
    loss = objective(student, labels, teacher, objective.count(labels))["loss"]
    (gradient,) = torch.autograd.grad(loss, student)
    assert float(loss.detach()) == 0.0
    assert not gradient.any()


def test_terms_of_the_same_kind_have_names_of_their_own() -> None:
    assert unique_names(["kd", "nkd", "kd"]) == ["kd-1", "nkd", "kd-2"]
