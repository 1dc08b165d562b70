"""The tiles of the last layer under Triton's interpreter, against the plain form in float64; see `test_tiled.py`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.worker.kernels.test_linear import Sides, fused, gradients, make, plain
from worker.kernels import tiled
from worker.kernels.linear import linear_distillation
from worker.kernels.spec import Divergence, DivergenceKind, RowSpec
from worker.tensors import IGNORED

KL = RowSpec(Divergence("forward-kl", temperature=2.0), divergence_weight=0.7, ce_weight=0.3)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several of each size, the last with a tail, and programs that share a row's vocabulary."""
    monkeypatch.setattr(tiled, "runs_tiled", lambda hidden: True)
    for name, size in (("ROWS", 16), ("COLUMNS", 32), ("HIDDEN", 16)):
        monkeypatch.setattr(tiled, name, size)
    monkeypatch.setattr(tiled, "processors", lambda tensor: 2)


def wide(sides: Sides, hidden: int = 20) -> Sides:
    """With so many hidden numbers of either side."""
    torch.manual_seed(1)
    shapes = (len(sides.labels), len(sides.weight), len(sides.labels), len(sides.teacher_weight))
    made = [0.3 * torch.randn(rows, hidden + 2 * (index > 1), dtype=torch.float64) for index, rows in enumerate(shapes)]
    own = (each.requires_grad_() for each in made[:2])
    names = ("hidden", "weight", "teacher_hidden", "teacher_weight")
    return sides._replace(**dict(zip(names, (*own, *made[2:]), strict=True)))


def assert_right(sides: Sides, spec: RowSpec) -> None:
    """Loss and gradients in float32 against those of the plain form in float64."""
    loss, ours = plain(sides, spec), sides.to(torch.float32)
    total = fused(ours, spec, tiled=True).total
    torch.testing.assert_close(total, loss.float(), rtol=1e-5, atol=1e-6)
    expected = {name: gradient.float() for name, gradient in gradients(loss, sides).items()}
    torch.testing.assert_close(gradients(total, ours), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["forward-kl", "reverse-kl"])
@pytest.mark.parametrize(
    ("options", "weights", "student", "teacher"),
    [
        ({}, (0.7, 0.3), 35, 35),
        ({"temperature": 3.0}, (0.7, 0.0), 40, 23),
        ({"temperature": 2.0, "softcap": 2.0, "logit_scale": 0.5}, (0.7, 0.3), 23, 40),
    ],
)
def test_loss_and_gradients_are_those_of_the_plain_form(
    kind: DivergenceKind, options: dict[str, float], weights: tuple[float, float], student: int, teacher: int
) -> None:
    assert_right(wide(make(20, student, teacher)), RowSpec(Divergence(kind, **options), *weights))


@pytest.mark.parametrize(
    "change",
    [
        lambda sides: sides._replace(labels=sides.labels.clamp(min=0)).rows(slice(1)),
        lambda sides: sides._replace(teacher_bias=sides.teacher_bias.index_fill(0, torch.tensor([3, 4]), -torch.inf)),
        lambda sides: sides._replace(hidden=(30.0 * sides.hidden).detach().requires_grad_()),
    ],
    ids=["one row", "masked columns", "large logits"],
)
def test_odd_inputs_are_right(change: Callable[[Sides], Sides]) -> None:
    assert_right(change(wide(make(20, 35, 35))), KL)


@pytest.mark.parametrize("kind", ["forward-kl", "reverse-kl"])
def test_logits_of_ten_thousand_stay_finite(kind: DivergenceKind) -> None:
    sides = wide(make(9, 35, 35))
    ours = sides._replace(hidden=(1e4 * sides.hidden).detach().requires_grad_()).to(torch.float32)
    total = fused(ours, RowSpec(Divergence(kind), 1.0, 0.5), tiled=True).total
    assert total.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(total, ours).values())


@pytest.mark.parametrize("kind", ["forward-kl", "reverse-kl"])
def test_a_student_that_equals_its_teacher_costs_nothing_and_learns_nothing(kind: DivergenceKind) -> None:
    sides = wide(make(9, 35, 35)).to(torch.float32)
    twin = sides._replace(
        teacher_hidden=sides.hidden.detach(), teacher_weight=sides.weight.detach(), teacher_bias=sides.bias.detach()
    )
    total = fused(twin, RowSpec(Divergence(kind)), tiled=True).total
    assert total.abs() < 1e-6
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients(total, twin).values())


def test_rows_that_are_ignored_are_not_read() -> None:
    sides = wide(make(9, 35, 35)).to(torch.float32)
    hidden = sides.hidden.detach().clone()
    hidden[sides.labels == IGNORED] = torch.nan
    ours = sides._replace(hidden=hidden.requires_grad_())
    total, expected = fused(ours, KL, tiled=True).total, fused(sides, KL, tiled=True).total
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(gradients(total, ours), gradients(expected, sides))


def test_parts_are_given_without_weights_and_labels_may_be_missing() -> None:
    sides = wide(make(20, 35, 35))
    ours = sides.to(torch.float32)
    exact, found = fused(sides, KL), fused(ours, KL, tiled=True)
    torch.testing.assert_close(found.divergence, exact.divergence.float())
    torch.testing.assert_close(found.cross_entropy, exact.cross_entropy.float())
    alone = RowSpec(Divergence("reverse-kl"))
    values = [
        linear_distillation(each.hidden, each.weight, each.teacher, None, alone, bias=each.bias, tiled=one).total
        for each, one in ((ours, True), (sides, False))
    ]
    torch.testing.assert_close(values[0], values[1].float())


def test_half_precision_is_rounded_where_chunks_round_it() -> None:
    # float16, as the interpreter multiplies the bits of bfloat16
    narrow = wide(make(9, 35, 35)).to(torch.float16)
    sides = narrow.to(torch.float64)
    loss, total = plain(sides, KL), fused(narrow, KL, tiled=True).total
    torch.testing.assert_close(total.double(), loss, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(total, narrow).items():
        expected = gradients(plain(sides, KL), sides)[name]
        assert gradient.dtype == torch.float16
        torch.testing.assert_close(gradient.double(), expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_a_pass_without_gradients_takes_tiles_by_itself_where_hidden_states_are_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sides, taken = wide(make(9, 35, 35)).to(torch.float32), list[int]()
    sums = tiled.sums

    def counted(task: tiled.Task) -> tiled.Sums:
        taken.append(1)
        return sums(task)

    monkeypatch.setattr(tiled, "sums", counted)
    fused(sides, KL)
    with torch.no_grad():
        expected = fused(sides, KL, tiled=False)
        assert not taken
        torch.testing.assert_close(fused(sides, KL), expected, rtol=1e-5, atol=1e-6)
        assert len(taken) == 1
        monkeypatch.setattr(tiled, "MOST_HIDDEN", 10)
        fused(sides, KL)
        fused(sides, RowSpec(Divergence("jsd")))
    assert len(taken) == 1


def test_how_many_programs_share_a_row_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = wide(make(9, 70, 70)).to(torch.float32)
    totals = []
    for number in (1, 4):
        monkeypatch.setattr(tiled, "processors", lambda tensor, number=number: number)
        total = fused(sides, KL, tiled=True).total
        totals.append((total.detach(), gradients(total, sides)))
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-5, atol=1e-6)
