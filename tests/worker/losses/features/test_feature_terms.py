"""Properties of every loss on features, independent of its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.recipe.losses import LOSSES, CfcdLocal, Hint, Lipschitz, LossSpec, MinedReconstruction, Overhaul, Rkd
from app.recipe.losses.features import FeatureTerm
from tests.worker.losses.features.samples import (
    ROWS,
    SPECS,
    Built,
    build,
    draw,
    inputs,
    margin_pair,
    pair,
    total,
)
from worker.losses.base import LossInputs
from worker.losses.features import FEATURE_TERMS

FEATURE_LOSSES = [kind for kind in LOSSES if issubclass(kind, FeatureTerm)]
every_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind}-{SPECS.index(spec)}")


def gradients(spec: LossSpec, built: Built, rows: LossInputs) -> list[Tensor]:
    """Gradients of the batch's loss at the student's features and the trainable parameters; 0 where there is none."""
    wanted = [*inputs(spec, rows), *built.trained]
    found = torch.autograd.grad(total(built, rows), wanted, allow_unused=True)
    return [torch.zeros_like(at) if grad is None else grad for at, grad in zip(wanted, found, strict=True)]


def select(rows: LossInputs, which: slice) -> LossInputs:
    """Some of the rows, as a part of a batch."""
    assert rows.teacher is not None
    features = rows.features._replace(
        student={tap: value[which] for tap, value in rows.features.student.items()},
        teacher={tap: value[which] for tap, value in rows.features.teacher.items()},
        student_tokens=None if rows.features.student_tokens is None else rows.features.student_tokens[which],
    )
    return rows._replace(
        student=rows.student[which], labels=rows.labels[which], teacher=rows.teacher[which], features=features
    )


def test_every_kind_has_a_term_and_a_sample() -> None:
    of_classes = {CfcdLocal}  # it compares features of the batch by their classes, and no teacher's
    assert set(FEATURE_TERMS) - of_classes == set(FEATURE_LOSSES) == {type(spec) for spec in SPECS}


@pytest.mark.parametrize("kind", FEATURE_LOSSES, ids=lambda kind: kind.__name__)
def test_every_kind_has_a_source_and_described_fields(kind: type[LossSpec]) -> None:
    assert kind.paper
    assert kind.equation
    assert [name for name, field in kind.model_fields.items() if not field.description and name != "kind"] == []


@every_spec
def test_gives_one_number_per_row(spec: LossSpec) -> None:
    value = build(spec)(draw())
    assert value.shape == (ROWS,)
    assert value.isfinite().all()


MINED = [spec for spec in SPECS if isinstance(spec, MinedReconstruction) and spec.gamma]
"""Their gradient is another than that of their value."""


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec not in MINED], ids=lambda spec: f"{spec.kind}")
def test_gradient_is_that_of_the_value(spec: LossSpec) -> None:
    rows, built = draw(3), build(spec)
    wanted = [*inputs(spec, rows), *built.trained]

    def loss(*_: Tensor) -> Tensor:
        return total(built, rows)

    assert torch.autograd.gradcheck(loss, wanted, atol=1e-5, fast_mode=True)


@every_spec
def test_gradient_reaches_the_student_and_the_parts_that_learn_and_nothing_else(spec: LossSpec) -> None:
    rows, built = draw(), build(spec)
    for value in rows.features.teacher.values():
        value.requires_grad_()
    total(built, rows).backward()  # type: ignore[no-untyped-call]
    assert all(at.grad is not None and at.grad.any() for at in inputs(spec, rows))
    unused = [at for at in built.trained if at.grad is None]
    assert len(unused) == (6 if getattr(spec, "bound", "") == "infonce" else 0)  # it does without the baseline
    assert all(value.grad is None for value in rows.features.teacher.values())
    frozen = {id(at) for at in built.parts.parameters()} - {id(at) for at in built.trained}
    assert all(at.grad is None for at in built.parts.parameters() if id(at) in frozen)


@every_spec
def test_rows_that_do_not_count_change_nothing(spec: LossSpec) -> None:
    rows = draw(ROWS + 2)
    kept = slice(0, ROWS)
    for side in (rows.features.student, rows.features.teacher):
        for value in side.values():
            value.data[ROWS:] *= 100.0
    valid = torch.arange(ROWS + 2) < ROWS
    few = select(rows, kept)
    torch.testing.assert_close(total(build(spec), rows._replace(valid=valid)), total(build(spec), few))
    torch.testing.assert_close(build(spec)(rows._replace(valid=valid))[kept], build(spec)(few))
    assert_gradients_equal(spec, rows._replace(valid=valid), few, inputs(spec, rows))


def assert_gradients_equal(spec: LossSpec, first: LossInputs, second: LossInputs, at: list[Tensor]) -> None:
    """Compares gradients of the losses of two batches made of `at`, there and at the trainable parameters."""
    found = [(build(spec), rows) for rows in (first, second)]
    grads = [torch.autograd.grad(total(built, rows), [*at, *built.trained], allow_unused=True) for built, rows in found]
    torch.testing.assert_close(*grads)


@every_spec
def test_a_batch_without_a_row_that_counts_costs_nothing(spec: LossSpec) -> None:
    rows = draw()._replace(valid=torch.zeros(ROWS, dtype=torch.bool))
    built = build(spec)
    assert total(built, rows) == 0.0
    assert all((grad == 0.0).all() for grad in gradients(spec, built, rows))


@every_spec
def test_a_batch_of_one_row_is_finite(spec: LossSpec) -> None:
    rows, built = draw(1), build(spec)
    assert total(built, rows).isfinite()
    assert all(grad.isfinite().all() for grad in gradients(spec, built, rows))


@pytest.mark.parametrize("spec", [spec for spec in SPECS if not spec.couples_rows], ids=lambda spec: f"{spec.kind}")
def test_rows_are_independent_unless_the_kind_couples_them(spec: LossSpec) -> None:
    rows, built = draw(6), build(spec)
    parts = torch.cat([built(select(rows, part)) for part in (slice(0, 2), slice(2, 6))])
    torch.testing.assert_close(parts, built(rows))


COUPLED = [kind for kind in FEATURE_LOSSES if kind.couples_rows and kind is not MinedReconstruction]
"""Kinds whose values depend on other rows; those of the last one do not, but its gradients do."""


@pytest.mark.parametrize("kind", COUPLED, ids=lambda kind: kind.__name__)
def test_a_kind_that_declares_coupled_rows_couples_them(kind: type[LossSpec]) -> None:
    rows = draw(6)
    lengths = torch.tensor([1, 2, 3, 4, 4, 4]).unsqueeze(1)
    rows = rows._replace(features=rows.features._replace(student_tokens=torch.arange(4) < lengths))

    def differs(spec: LossSpec) -> bool:
        built = build(spec)
        parts = torch.cat([built(select(rows, part)) for part in (slice(0, 2), slice(2, 6))])
        return not torch.allclose(parts, built(rows))

    assert any(differs(spec) for spec in SPECS if isinstance(spec, kind))


SAME: list[LossSpec] = [
    Hint(pairs=[pair("vector", "same.vector"), pair("map", "same.map"), pair("tokens", "same.tokens")]),
    Hint(pairs=[pair("map", "same.map")], reduction="mean"),
    Rkd(),
    Rkd(pair=pair("map", "same.map")),
    Overhaul(pairs=[margin_pair("map", "same.map"), margin_pair("late", "same.late")], adapter="none"),
    Lipschitz(pairs=[pair("map", "same.map"), pair("late", "same.late")], adapter="none"),
    MinedReconstruction(pairs=[pair("map", "same.map"), pair("tokens", "same.tokens")]),
]


@pytest.mark.parametrize("spec", SAME, ids=lambda spec: f"{spec.kind}-{SAME.index(spec)}")
def test_features_equal_to_the_teachers_cost_nothing(spec: LossSpec) -> None:
    rows = draw()
    own = {
        tap: rows.features.teacher[taught].clone().requires_grad_()
        for tap, taught in zip(spec.taps().student, spec.taps().teacher, strict=True)
    }
    assert rows.teacher is not None
    same = rows._replace(student=rows.teacher.clone().requires_grad_(), features=rows.features._replace(student=own))
    built = build(spec)
    torch.testing.assert_close(total(built, same), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        gradients(spec, built, same), [torch.zeros_like(at) for at in inputs(spec, same)], rtol=0, atol=1e-8
    )


@every_spec
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_computed_in_float32(spec: LossSpec, dtype: torch.dtype) -> None:
    coarse = draw(dtype=dtype)
    assert coarse.teacher is not None
    fine = coarse._replace(
        student=coarse.student.float(),
        teacher=coarse.teacher.float(),
        features=coarse.features._replace(
            student={tap: value.float() for tap, value in coarse.features.student.items()},
            teacher={tap: value.float() for tap, value in coarse.features.teacher.items()},
        ),
    )
    value = build(spec, torch.float32)(coarse)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, build(spec, torch.float32)(fine), rtol=0, atol=0)


@every_spec
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_dead_and_huge_features_stay_finite(spec: LossSpec, scale: float) -> None:
    rows, built = draw(dtype=torch.float32, scale=scale), build(spec, torch.float32)
    assert built(rows).isfinite().all()
    assert all(grad.isfinite().all() for grad in gradients(spec, built, rows))


@every_spec
def test_a_teacher_without_features_is_missed(spec: LossSpec) -> None:
    rows = draw()
    with pytest.raises(ValueError, match="teacher"):
        build(spec)(rows._replace(teacher=None, features=rows.features._replace(teacher={})))


@every_spec
def test_a_document_has_all_fields(spec: LossSpec) -> None:
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec


@every_spec
def test_a_term_declares_its_taps(spec: LossSpec) -> None:
    rows, built, taps = draw(), build(spec), spec.taps()
    assert bool(taps.teacher) == (spec != Rkd())
    student = {tap: rows.features.student[tap] for tap in taps.student}
    teacher = {tap: rows.features.teacher[tap] for tap in taps.teacher}
    told = rows._replace(features=rows.features._replace(student=student, teacher=teacher))
    torch.testing.assert_close(built(told), build(spec)(rows))
