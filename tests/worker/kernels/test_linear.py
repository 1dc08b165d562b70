"""Distillation at the last layer against a plain form in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from worker.kernels.linear import (
    HiddenTeacher,
    KernelTeacher,
    NoTeacher,
    _chunks,
    linear_distillation,
)
from worker.kernels.references import cross_entropy, divergence
from worker.kernels.rows import widened
from worker.kernels.sparse import TopKTeacher
from worker.kernels.spec import Divergence, DivergenceKind, RowLosses, RowSpec
from worker.kernels.top_k import TopK
from worker.tensors import IGNORED, take_rows

KINDS: tuple[DivergenceKind, ...] = get_args(DivergenceKind)
KD = RowSpec(Divergence("forward-kl", temperature=2.0), divergence_weight=0.7, ce_weight=0.3)
PARTS = ("hidden", "weight", "bias")


class Sides(NamedTuple):
    """Both sides of a batch, the student's as leaves."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    teacher_bias: Tensor
    labels: Tensor

    @property
    def teacher(self) -> HiddenTeacher:
        return HiddenTeacher(self.teacher_hidden, self.teacher_weight, self.teacher_bias)

    @property
    def teacher_logits(self) -> Tensor:
        return F.linear(self.teacher_hidden, self.teacher_weight, self.teacher_bias)

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.hidden, self.weight, self.bias

    def to(self, dtype: torch.dtype) -> Sides:
        *numbers, labels = self
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in numbers[:3]]
        return Sides(*leaves, *(tensor.to(dtype) for tensor in numbers[3:]), labels)

    def rows(self, rows: slice) -> Sides:
        return self._replace(
            hidden=self.hidden[rows], teacher_hidden=self.teacher_hidden[rows], labels=self.labels[rows]
        )


def make(rows: int = 13, student: int = 11, teacher: int = 11) -> Sides:
    torch.manual_seed(0)
    shapes = ((rows, 5), (student, 5), (student,), (rows, 7), (teacher, 7), (teacher,))
    labels = torch.randint(min(student, teacher), (rows,))
    labels[1::3] = IGNORED
    return Sides(*(torch.randn(shape, dtype=torch.float64) for shape in shapes), labels).to(torch.float64)


def fused(sides: Sides, spec: RowSpec = KD, teacher: KernelTeacher | None = None, **options: Any) -> RowLosses:
    against = sides.teacher if teacher is None else teacher
    return linear_distillation(sides.hidden, sides.weight, against, sides.labels, spec, bias=sides.bias, **options)


def plain(sides: Sides, spec: RowSpec = KD, teacher_logits: Tensor | None = None) -> Tensor:
    """The same by the references, over all logits."""
    assert spec.divergence is not None
    given = sides.teacher_logits if teacher_logits is None else teacher_logits
    student = F.linear(sides.hidden, sides.weight, sides.bias)
    width, valid = max(student.shape[1], given.shape[1]), sides.labels != IGNORED
    labels = sides.labels.where(valid, 0)
    soft = divergence(spec.divergence, widened(student, width), widened(given, width), labels)[valid].mean()
    hard = cross_entropy(student, labels, spec.label_smoothing)[valid].mean()
    return spec.divergence_weight * soft + spec.ce_weight * hard


def gradients(loss: Tensor, sides: Sides) -> dict[str, Tensor]:
    return dict(zip(PARTS, torch.autograd.grad(loss, sides.leaves), strict=True))


def assert_alike(ours: Tensor, other: Tensor, sides: Sides) -> None:
    torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients(ours, sides), gradients(other, sides), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"temperature": 3.0}])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_those_of_the_plain_form(
    kind: DivergenceKind, options: dict[str, float], smoothing: float
) -> None:
    sides = make()
    spec = RowSpec(Divergence(kind, **options), divergence_weight=0.7, ce_weight=0.3, label_smoothing=smoothing)
    assert_alike(fused(sides, spec, budget=500).total, plain(sides, spec), sides)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("student", "teacher"), [(11, 16), (16, 11)])
def test_columns_that_one_side_lacks_count_as_masked(kind: DivergenceKind, student: int, teacher: int) -> None:
    sides, spec = make(student=student, teacher=teacher), RowSpec(Divergence(kind), 0.7, 0.3)
    assert_alike(fused(sides, spec).total, plain(sides, spec), sides)


@pytest.mark.parametrize("budget", [1, 400, 1000, 1 << 30])
def test_the_budget_changes_nothing(budget: int) -> None:
    sides = make()
    assert_alike(fused(sides, budget=budget).total, plain(sides), sides)


def test_gradients_agree_with_differences_of_the_loss() -> None:
    sides, step = make(rows=4, student=6, teacher=6), 1e-6
    for part, gradient in gradients(fused(sides).total, sides).items():
        direction = torch.randn_like(gradient)
        there, back = (
            fused(sides._replace(**{part: getattr(sides, part).detach() + sign * step * direction})).total
            for sign in (1, -1)
        )
        torch.testing.assert_close((there - back) / (2 * step), (gradient * direction).sum(), rtol=1e-6, atol=1e-9)


def test_parts_of_a_batch_add_up_to_the_batch() -> None:
    sides = make()
    count = (sides.labels != IGNORED).sum()
    for rows in (slice(0, 4), slice(4, 5), slice(5, None)):
        fused(sides.rows(rows), divisor=count).total.backward()
    for part, gradient in gradients(plain(sides), sides).items():
        torch.testing.assert_close(getattr(sides, part).grad, gradient, rtol=1e-8, atol=1e-12)


def test_ignored_rows_are_not_read() -> None:
    sides = make()
    expected = gradients(plain(sides), sides)
    ignored = sides.labels == IGNORED
    spoilt = sides._replace(
        hidden=sides.hidden.detach().masked_fill(ignored[:, None], math.nan).requires_grad_(),
        teacher_hidden=sides.teacher_hidden.masked_fill(ignored[:, None], math.inf),
    )
    torch.testing.assert_close(gradients(fused(spoilt).total, spoilt), expected, rtol=1e-8, atol=1e-12)
    assert expected["hidden"][ignored].count_nonzero() == 0


def test_a_batch_of_ignored_rows_gives_zeros() -> None:
    sides = make()._replace(labels=torch.full((13,), IGNORED))
    losses = fused(sides)
    assert [float(part.detach()) for part in losses] == [0.0, 0.0, 0.0]
    assert all(gradient.count_nonzero() == 0 for gradient in gradients(losses.total, sides).values())


def test_no_rows_give_zeros() -> None:
    sides = make().rows(slice(0, 0))
    losses = linear_distillation(sides.hidden, sides.weight, NoTeacher(), None, RowSpec(None, ce_weight=1.0))
    assert float(losses.total.detach()) == 0.0


def test_all_rows_count_without_labels() -> None:
    sides, spec = make(), RowSpec(Divergence("reverse-kl"))
    losses = linear_distillation(sides.hidden, sides.weight, sides.teacher, None, spec, bias=sides.bias)
    everything = sides._replace(labels=torch.zeros(13, dtype=torch.int64))
    assert_alike(losses.total, plain(everything, spec), sides)


@pytest.mark.parametrize("kind", KINDS)
def test_huge_logits_stay_finite(kind: DivergenceKind) -> None:
    sides = make().to(torch.float32)
    big = sides._replace(
        hidden=(sides.hidden.detach() * 1e4).requires_grad_(), teacher_hidden=-1e4 * sides.teacher_hidden
    )
    losses = fused(big, RowSpec(Divergence(kind), 0.7, 0.3))
    assert all(part.isfinite() for part in losses)
    assert all(gradient.isfinite().all() for gradient in gradients(losses.total, big).values())


@pytest.mark.parametrize("kind", ["forward-kl", "reverse-kl", "jsd", "skew-kl", "skew-reverse-kl", "tvd", "logit-mse"])
def test_a_student_that_equals_its_teacher_costs_nothing(kind: DivergenceKind) -> None:
    sides = make().to(torch.float32)
    teacher = HiddenTeacher(sides.hidden, sides.weight, sides.bias)
    total = fused(sides, RowSpec(Divergence(kind, temperature=2.0)), teacher).total
    torch.testing.assert_close(total, torch.zeros(()), rtol=0.0, atol=1e-6)
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients(total, sides).values())


def test_bfloat16_is_as_near_as_its_rounding_allows() -> None:
    narrow = make(rows=64).to(torch.bfloat16)
    exact = narrow.to(torch.float64)
    losses = fused(narrow, budget=600)
    assert losses.total.dtype == torch.float32
    torch.testing.assert_close(losses.total.double(), plain(exact), rtol=1e-2, atol=0.0)
    for part, gradient in gradients(losses.total, narrow).items():
        expected = gradients(plain(exact), exact)[part]
        assert gradient.dtype == torch.bfloat16
        assert (gradient.double() - expected).norm() < 0.02 * expected.norm()


def test_float16_keeps_gradients_that_a_large_divisor_would_lose() -> None:
    sides = make().to(torch.float16)
    total = fused(sides, divisor=1e7).total * 1e6  # as a gradient scaler would
    exact = sides.to(torch.float64)
    expected = gradients(plain(exact) * (9 * 0.1), exact)
    torch.testing.assert_close(gradients(total, sides)["weight"].double(), expected["weight"], rtol=0.05, atol=1e-3)


def test_autocast_decides_the_dtype_of_the_products() -> None:
    sides = make().to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        total = fused(sides).total
    found = gradients(total, sides)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    narrow = sides.to(torch.bfloat16)
    expected = gradients(fused(narrow).total, narrow)
    torch.testing.assert_close(found, {part: of.float() for part, of in expected.items()}, rtol=0.0, atol=0.0)


def test_a_factor_on_the_loss_reaches_the_gradients() -> None:
    sides = make()
    assert_alike(fused(sides).total * -3.0, plain(sides) * -3.0, sides)


def test_gradients_are_handed_over_once() -> None:
    sides = make()
    total = fused(sides).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="earlier backward pass"):
        total.backward()


def test_a_second_loss_adds_to_the_gradients_of_the_first() -> None:
    sides = make()
    for _ in range(2):
        fused(sides).total.backward()
    for part, gradient in gradients(plain(sides), sides).items():
        torch.testing.assert_close(getattr(sides, part).grad, 2.0 * gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("part", PARTS)
def test_what_is_frozen_gets_no_gradient(part: str) -> None:
    sides = make()
    getattr(sides, part).requires_grad_(False)
    total = fused(sides).total
    total.backward()
    assert getattr(sides, part).grad is None
    others = [leaf for leaf in sides.leaves if leaf.requires_grad]
    for leaf, expected in zip(others, torch.autograd.grad(plain(sides), others), strict=True):
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-8, atol=1e-12)


def test_without_gradients_the_losses_are_the_same() -> None:
    sides = make()
    with torch.no_grad():
        losses = fused(sides)
    assert not losses.total.requires_grad
    torch.testing.assert_close(losses.total, plain(sides).detach(), rtol=1e-9, atol=1e-12)


def test_cross_entropy_alone_needs_no_teacher() -> None:
    sides, spec = make(), RowSpec(None, ce_weight=1.0)
    expected = F.cross_entropy(F.linear(sides.hidden, sides.weight, sides.bias), sides.labels)
    assert_alike(fused(sides, spec, NoTeacher()).total, expected, sides)


def test_both_parts_are_returned_separately() -> None:
    losses = fused(make())
    torch.testing.assert_close(losses.total, 0.7 * losses.divergence + 0.3 * losses.cross_entropy)
    assert not losses.divergence.requires_grad


@pytest.mark.parametrize(
    ("rows", "size", "multiple", "lengths"),
    [
        (1024, 384, 128, [384, 384, 256]),
        (1024, 384, 1, [342, 342, 340]),
        (8192, 2093, 128, [2048] * 4),
        (10, 4, 128, [4, 4, 2]),
        (3, 100, 128, [3]),
        (0, 100, 128, []),
    ],
)
def test_chunks_are_even_and_whole_tiles_where_they_fit(
    rows: int, size: int, multiple: int, lengths: list[int]
) -> None:
    numbers = torch.arange(rows)
    for picked in (_chunks(None, rows, size, multiple), _chunks(numbers, rows, size, multiple)):
        parts = [take_rows(numbers, each) for each in picked]
        assert [len(part) for part in parts] == lengths
        assert torch.equal(torch.cat([numbers[:0], *parts]), numbers)


class Sizes(TorchDispatchMode):
    """The most numbers that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.largest = max(self.largest, out.numel())
        return out


def test_logits_never_exist_in_full() -> None:
    sides = make(rows=512, student=8192, teacher=8192).to(torch.float32)
    with Sizes() as sizes:
        fused(sides).total.backward()
    assert sizes.largest <= 512 * 8192 * 3 // 8


def kept(logits: Tensor, k: int) -> TopK:
    values, indices = logits.topk(k, dim=1)
    return TopK(indices, values, logits.scatter(1, indices, -torch.inf).logsumexp(1, keepdim=True))


def filled_in(some: TopK, classes: int) -> Tensor:
    """Logits of all classes, those that aren't kept with equal parts of the rest."""
    each = some.rest - math.log(classes - some.indices.shape[1])
    return each.repeat(1, classes).scatter(1, some.indices, some.values)


@pytest.mark.parametrize("kind", KINDS)
def test_all_classes_kept_equal_the_dense_teacher(kind: DivergenceKind) -> None:
    sides, spec = make(), RowSpec(Divergence(kind, temperature=2.0), 0.7, 0.3)
    teacher = TopKTeacher(kept(sides.teacher_logits, 11), 11)
    assert_alike(fused(sides, spec, teacher).total, plain(sides, spec), sides)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("student", "teacher"), [(11, 11), (11, 16), (16, 11)])
def test_some_classes_kept_equal_the_dense_teacher_that_they_stand_for(
    kind: DivergenceKind, student: int, teacher: int
) -> None:
    sides, spec = make(student=student, teacher=teacher), RowSpec(Divergence(kind, temperature=2.0), 0.7, 0.3)
    some = kept(sides.teacher_logits, 4)
    ours = fused(sides, spec, TopKTeacher(some, teacher)).total
    assert_alike(ours, plain(sides, spec, filled_in(some, teacher)), sides)


def test_kept_classes_in_other_dtypes_do_as_well() -> None:
    sides = make().to(torch.float32)
    indices, values, rest = kept(sides.teacher_logits, 4)
    narrow = TopK(indices.to(torch.int16), values.bfloat16(), rest)
    wide = TopK(indices, values.bfloat16().float(), rest)
    ours, other = (fused(sides, teacher=TopKTeacher(some, 11)).total for some in (narrow, wide))
    torch.testing.assert_close(ours, other)


def test_huge_logits_of_a_sparse_teacher_stay_finite() -> None:
    sides = make().to(torch.float32)
    big = sides._replace(hidden=(sides.hidden.detach() * 1e4).requires_grad_())
    losses = fused(big, teacher=TopKTeacher(kept(-1e4 * sides.teacher_logits, 4), 11))
    assert all(part.isfinite() for part in losses)
    assert all(gradient.isfinite().all() for gradient in gradients(losses.total, big).values())
