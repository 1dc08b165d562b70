"""Normalised gradient descent divides by the error of the outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from app.recipe import optimizers as contract
from worker.optimizers import build_optimizer
from worker.optimizers.normalized_gd import NormalizedGdOptimizer

SAMPLES = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(12) % 3


def model() -> nn.Linear:
    made = nn.Linear(5, 3, dtype=torch.float64)
    nn.init.zeros_(made.weight)
    nn.init.zeros_(made.bias)
    return made


def stepper(student: nn.Module, rate: float = 0.7) -> NormalizedGdOptimizer:
    optimizer = build_optimizer(contract.NormalizedGd(lr=rate), student.parameters())
    assert isinstance(optimizer, NormalizedGdOptimizer)
    return optimizer


def loss(student: nn.Module, optimizer: NormalizedGdOptimizer, rows: slice, targets: Tensor = LABELS) -> Tensor:
    outputs = student(SAMPLES[rows])
    optimizer.listen(outputs)
    return nn.functional.cross_entropy(outputs, targets[rows], reduction="sum") / len(SAMPLES)


def after_a_step(factor: float = 1.0, parts: int = 1, targets: Tensor = LABELS) -> Tensor:
    student = model()
    optimizer = stepper(student)
    size = len(SAMPLES) // parts
    for part in range(parts):
        (factor * loss(student, optimizer, slice(part * size, (part + 1) * size), targets)).backward()
    optimizer.step()
    return student.weight.detach()


def test_a_step_is_the_mean_gradient_over_the_mean_probability_of_the_wrong_classes() -> None:
    off = torch.full((12, 3), 1 / 3, dtype=torch.float64) - nn.functional.one_hot(LABELS, 3)
    torch.testing.assert_close(after_a_step(), -0.7 * (off.T @ SAMPLES / 12) / (2 / 3))


def test_with_soft_labels_the_divisor_is_the_distance_from_them() -> None:
    soft = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).expand(12, 3)
    off = torch.full((12, 3), 1 / 3, dtype=torch.float64) - soft
    torch.testing.assert_close(after_a_step(targets=soft), -0.7 * (off.T @ SAMPLES / 12) / (1 / 3))


@pytest.mark.parametrize(("factor", "parts"), [(100.0, 1), (1e-3, 1), (1.0, 3)])
def test_neither_the_weight_of_the_loss_nor_the_parts_of_a_batch_change_a_step(factor: float, parts: int) -> None:
    torch.testing.assert_close(after_a_step(factor, parts), after_a_step())


def test_the_sum_of_one_batch_is_cleared_for_the_next() -> None:
    student = model()
    optimizer = stepper(student)
    loss(student, optimizer, slice(0, 6)).backward()
    optimizer.zero_grad()
    loss(student, optimizer, slice(None)).backward()
    optimizer.step()
    torch.testing.assert_close(student.weight.detach(), after_a_step())


def test_without_a_mistake_there_is_no_step() -> None:
    student = model()
    optimizer = stepper(student)
    outputs = student(SAMPLES)
    optimizer.listen(outputs)
    (0.0 * outputs).sum().backward()
    optimizer.step()
    assert student.weight.detach().abs().max() == 0.0


def test_a_step_needs_the_outputs() -> None:
    student = model()
    optimizer = stepper(student)
    nn.functional.cross_entropy(student(SAMPLES), LABELS).backward()
    with pytest.raises(RuntimeError, match="listen"):
        optimizer.step()
