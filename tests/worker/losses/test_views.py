"""NT-Xent of two views: properties, a reference written out, and memory that is linear in the rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from app.recipe.losses import NtXent
from tests.worker.losses.samples import term_of
from worker.losses import anchors, build_term
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.views import nt_xent

PLAIN = NtXent(projection="none", temperature=0.2)


def draw(pairs: int = 5, width: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    random = torch.Generator().manual_seed(pairs)
    return torch.randn(2 * pairs, width, generator=random, dtype=dtype).requires_grad_()


def losses(vectors: Tensor, spec: NtXent = PLAIN) -> Tensor:
    return term_of(spec)(LossInputs(vectors, torch.zeros(len(vectors), dtype=torch.int64), None, rows_per_sample=2))


def written_out(vectors: Tensor, temperature: float) -> Tensor:
    units = vectors / vectors.norm(dim=1, keepdim=True)
    found = []
    for row in range(len(units)):
        others = [other for other in range(len(units)) if other != row]
        logits = torch.stack([units[row] @ units[other] for other in others]) / temperature
        found.append(logits.logsumexp(0) - logits[others.index(row + 1 if row % 2 == 0 else row - 1)])
    return torch.stack(found)


def test_it_is_the_equation_written_out() -> None:
    vectors = draw()
    torch.testing.assert_close(losses(vectors), written_out(vectors, 0.2), rtol=1e-12, atol=1e-12)


def test_gradient_is_that_of_the_value() -> None:
    assert torch.autograd.gradcheck(losses, draw(3))


@pytest.mark.parametrize("at_once", [1, 10, 37])
def test_some_anchors_at_a_time_are_the_whole(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    vectors = draw(6)
    whole = losses(vectors)
    (expected,) = torch.autograd.grad(whole.square().sum(), vectors)
    monkeypatch.setattr(anchors, "AT_ONCE", at_once)
    parts = losses(vectors)
    (found,) = torch.autograd.grad(parts.square().sum(), vectors)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_it_depends_on_directions_alone_and_not_on_the_order_of_pairs() -> None:
    vectors = draw().detach()
    scaled = vectors * torch.rand(len(vectors), 1, dtype=torch.float64).add(0.1)
    torch.testing.assert_close(losses(scaled), losses(vectors), rtol=1e-12, atol=1e-12)
    order = torch.tensor([3, 0, 4, 1, 2])
    rows = torch.stack([2 * order, 2 * order + 1], 1).flatten()
    torch.testing.assert_close(losses(vectors[rows]), losses(vectors)[rows], rtol=1e-12, atol=1e-12)


def test_it_is_within_its_bounds() -> None:
    values, rows = losses(draw(20)), 40
    assert (values > 0.0).all()
    assert (values < math.log(rows - 1) + 2 / 0.2).all()
    same = torch.ones(rows, 3, dtype=torch.float64)
    torch.testing.assert_close(losses(same), torch.full((rows,), math.log(rows - 1), dtype=torch.float64))


def test_a_single_pair_has_no_loss_and_no_gradient() -> None:
    vectors = draw(1)
    found = losses(vectors)
    (gradient,) = torch.autograd.grad(found.sum(), vectors)
    assert torch.equal(found.detach(), torch.zeros(2, dtype=torch.float64))
    assert torch.equal(gradient, torch.zeros_like(vectors))
    assert len(nt_xent(torch.zeros(0, 3), 0.5)) == 0


def test_zero_and_huge_vectors_stay_finite_and_half_precision_is_computed_in_float32() -> None:
    vectors = torch.tensor([[0.0, 0.0], [1e4, -1e4], [1e4, 1e4], [1e4, 1.0]], dtype=torch.bfloat16, requires_grad=True)
    found = losses(vectors, NtXent(projection="none", temperature=0.01))
    (gradient,) = torch.autograd.grad(found.sum(), vectors)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("spec", "parts", "shapes"),
    [
        (NtXent(dimensions=3), {"views-5-3"}, [(5, 5), (3, 5)]),
        (NtXent(dimensions=3, hidden=7, name="other"), {"other-7-3"}, [(7, 5), (3, 7)]),
        (NtXent(dimensions=2, projection="linear"), {"views-2"}, [(2, 5)]),
        (NtXent(projection="none"), set(), []),
    ],
)
def test_the_projection_is_trained_beside_the_student(
    spec: NtXent, parts: set[str], shapes: list[tuple[int, int]]
) -> None:
    builder = LossBuilder({}, {}, 5)
    term = build_term(spec, builder)
    assert builder.trained == parts
    matrices = [parameter for parameter in builder.aux_modules.parameters() if parameter.ndim == 2]
    assert [tuple(matrix.shape) for matrix in matrices] == shapes
    rows = LossInputs(draw(4, 5, torch.float32), torch.zeros(8, dtype=torch.int64), None, rows_per_sample=2)
    term(rows).sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in matrices if parameter.grad is not None)
    assert all(parameter.grad is not None for parameter in matrices)


def test_terms_of_one_name_share_a_projection_of_one_size() -> None:
    builder = LossBuilder({}, {}, 5)
    for temperature in (0.1, 0.5):
        build_term(NtXent(dimensions=3, temperature=temperature), builder)
    assert builder.trained == {"views-5-3"}
    build_term(NtXent(dimensions=4), builder)
    assert builder.trained == {"views-5-3", "views-5-4"}
