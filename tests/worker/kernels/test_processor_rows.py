"""The row losses written out for a CPU, compared with the references that define them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worker.kernels.processor_rows import RowBlock, covers, forward_kl_
from worker.kernels.rows import plain_by_autograd, row_loss_
from worker.kernels.spec import Divergence, RowInputs, RowLosses, RowSpec
from worker.tensors import IGNORED

CLASSES = 9


def inputs(student: int = CLASSES, teacher: int = CLASSES, dtype: torch.dtype = torch.float64) -> RowInputs:
    torch.manual_seed(0)
    labels = torch.randint(CLASSES, (12,))
    labels[::4] = IGNORED
    return RowInputs(
        (torch.randn(12, student) * 3).to(dtype), (torch.randn(12, teacher) * 3).to(dtype), labels, torch.rand(12)
    )


def both(given: RowInputs, spec: RowSpec) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Divergence, cross-entropy and gradient: by the selected implementation and by the references."""
    ours, other = given.student.clone(), given.student.clone()
    losses: RowLosses = row_loss_(ours, given.teacher, given.labels, spec, row_weights=given.row_weights)
    by_reference = plain_by_autograd(given._replace(student=other), spec, True)
    return (losses.divergence, losses.cross_entropy, ours), (*by_reference, other)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("ce_weight", [0.0, 0.4])
@pytest.mark.parametrize(("student", "teacher"), [(9, 9), (9, 13), (13, 9)])
def test_it_equals_the_references(temperature: float, ce_weight: float, student: int, teacher: int) -> None:
    spec = RowSpec(Divergence("forward-kl", temperature=temperature), 0.7, ce_weight)
    ours, by_reference = both(inputs(student, teacher), spec)
    torch.testing.assert_close(ours, by_reference, rtol=1e-9, atol=1e-12)


def test_bfloat16_logits_are_rounded_once() -> None:
    given, spec = inputs(dtype=torch.bfloat16), RowSpec(Divergence("forward-kl"), 0.7, 0.3)
    ours, by_reference = both(given, spec)
    torch.testing.assert_close(ours, by_reference, rtol=1e-2, atol=1e-3)
    assert ours[2].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("spec", [RowSpec(None, ce_weight=0.4), RowSpec(Divergence("jsd"), 0.0, 0.4)])
def test_cross_entropy_alone_equals_the_reference(spec: RowSpec, dtype: torch.dtype) -> None:
    given = inputs(dtype=dtype)
    given.student[1, CLASSES - 1] = -torch.inf
    assert given.labels is not None
    given.labels[1] = 0
    ours, by_reference = both(given._replace(teacher=None), spec)
    exact = dtype == torch.float64
    torch.testing.assert_close(ours, by_reference, rtol=1e-9 if exact else 1e-2, atol=1e-12 if exact else 1e-3)


@pytest.mark.parametrize("side", [0, 1])
def test_masked_columns_are_left_to_the_references(side: int) -> None:
    given, spec = inputs(), RowSpec(Divergence("forward-kl"), 0.7)
    masked = given[side].index_fill(1, torch.tensor([2]), -torch.inf)  # type: ignore[union-attr]
    given = given._replace(**{RowInputs._fields[side]: masked})
    assert given.teacher is not None
    block = RowBlock(given.student.clone(), given.teacher, torch.zeros(12, dtype=torch.int64), torch.ones(12))
    assert forward_kl_(block, spec, gradient=True) is None
    assert torch.equal(block.student, given.student)
    ours, by_reference = both(given, spec)
    torch.testing.assert_close(ours, by_reference, rtol=1e-9, atol=1e-12)


def test_without_a_gradient_the_logits_stay() -> None:
    given = inputs()
    before = given.student.clone()
    row_loss_(given.student, given.teacher, given.labels, RowSpec(Divergence("forward-kl")), gradient=False)
    assert torch.equal(given.student, before)


@pytest.mark.parametrize(
    "spec",
    [
        RowSpec(None, ce_weight=1.0),
        RowSpec(Divergence("reverse-kl")),
        RowSpec(Divergence("forward-kl"), 1.0, 1.0, label_smoothing=0.1),
        RowSpec(Divergence("forward-kl"), 0.0, 1.0),
    ],
)
def test_anything_else_is_not_covered(spec: RowSpec) -> None:
    assert not covers(spec)
