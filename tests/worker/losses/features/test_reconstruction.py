"""Losses of a student that reconstructs the features of its encoder."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import FeatureReconstruction, LossSpec, MinedReconstruction, PrototypeCoherence
from app.recipe.losses.reconstruction import DECODED, ENCODED, PROTOTYPES, TOKENS, ReconstructionTerm
from app.recipe.losses.taps import Pair, Tap
from worker.losses import build_term
from worker.losses.base import Features, LossInputs, LossTerm
from worker.losses.builder import LossBuilder, TeacherSide

ROWS, GROUPS, POSITIONS, WIDTH = 4, 2, 6, 5
SPECS: list[LossSpec] = [FeatureReconstruction(), FeatureReconstruction(gamma=0.0), PrototypeCoherence()]
each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind}-{SPECS.index(spec)}")


def draw(rows: int = ROWS, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> LossInputs:
    random = torch.Generator().manual_seed(0)
    shapes = {
        ENCODED: (GROUPS, POSITIONS, WIDTH),
        DECODED: (GROUPS, POSITIONS, WIDTH),
        TOKENS: (POSITIONS, WIDTH),
        PROTOTYPES: (3, WIDTH),
    }
    drawn = {
        tap: (scale * torch.randn(rows, *shape, generator=random, dtype=torch.float64)).to(dtype).requires_grad_()
        for tap, shape in shapes.items()
    }
    labels = torch.zeros(rows, dtype=torch.int64)
    return LossInputs(torch.zeros(rows, 1, dtype=dtype), labels, None, features=Features(drawn, {}))


def term(spec: LossSpec) -> LossTerm:
    return build_term(spec, LossBuilder({}, {}, 1))


def gradients(spec: LossSpec, rows: LossInputs, count: int | None = None) -> tuple[Tensor, ...]:
    """At what learns: reconstructions, or prototypes."""
    losses = term(spec)(rows)
    loss = losses.mean() if count is None else losses[:count].sum() / count
    return torch.autograd.grad(loss, rows.features.student[spec.taps().student[0 if "feature" in spec.kind else 1]])


@each_spec
def test_each_row_has_a_loss_of_no_teacher(spec: LossSpec) -> None:
    assert isinstance(spec, ReconstructionTerm)
    assert not spec.needs_teacher
    values = term(spec)(draw())
    assert values.shape == (ROWS,)
    assert ((values > 0) & (values < 2)).all()


def test_reconstruction_is_soft_mining_of_each_group() -> None:
    rows = draw()
    sides = {tap: rows.features.student[tap] for tap in (DECODED, ENCODED)}
    names = [f"group{number}" for number in range(GROUPS)]
    own, taught = (
        {Tap(path=name): sides[tap][:, number] for number, name in enumerate(names)} for tap in (DECODED, ENCODED)
    )
    pairs = [Pair(student=Tap(path=name), teacher=Tap(path=name)) for name in names]
    shapes = {tap: value.shape for tap, value in own.items()}
    builder = LossBuilder(shapes, {"teacher": TeacherSide(torch.nn.Module(), shapes)}, 1)
    mined = build_term(MinedReconstruction(pairs=pairs), builder)
    theirs = mined(rows._replace(features=Features(own, taught)))
    torch.testing.assert_close(term(FeatureReconstruction())(rows), theirs)
    expected = torch.autograd.grad(theirs.mean(), sides[DECODED])
    torch.testing.assert_close(gradients(FeatureReconstruction(), rows), expected)


def test_the_nearest_prototype_counts_and_it_alone_gets_a_gradient() -> None:
    rows = draw(1)
    tokens, prototypes = rows.features.student[TOKENS][0], rows.features.student[PROTOTYPES][0]
    cosines = F.cosine_similarity(tokens.unsqueeze(1), prototypes, dim=-1)
    torch.testing.assert_close(term(PrototypeCoherence())(rows)[0], (1 - cosines).amin(1).mean())
    near = set(cosines.argmax(1).tolist())
    far = draw(1)
    for tap in (TOKENS, PROTOTYPES):
        far.features.student[tap].data.abs_()
    far.features.student[PROTOTYPES].data[:, 0] *= -1.0
    (gradient,) = gradients(PrototypeCoherence(), far)
    assert not gradient[0, 0].any()
    (gradient,) = gradients(PrototypeCoherence(), rows)
    assert {number for number in range(3) if gradient[0, number].any()} == near


@each_spec
def test_what_is_alike_costs_nothing(spec: LossSpec) -> None:
    rows = draw()
    seen = rows.features.student
    same = {DECODED: 3.0 * seen[ENCODED], PROTOTYPES: 2.0 * seen[TOKENS][:, :POSITIONS]}
    rows = rows._replace(features=Features({**seen, **same}, {}))
    torch.testing.assert_close(term(spec)(rows), torch.zeros(ROWS, dtype=torch.float64), rtol=0.0, atol=1e-12)


@each_spec
def test_a_value_does_not_depend_on_the_other_rows(spec: LossSpec) -> None:
    rows = draw()
    few = {tap: value[:2] for tap, value in rows.features.student.items()}
    some = rows._replace(student=rows.student[:2], labels=rows.labels[:2], features=Features(few, {}))
    torch.testing.assert_close(term(spec)(some), term(spec)(rows)[:2])


@each_spec
def test_rows_that_do_not_count_change_no_gradient(spec: LossSpec) -> None:
    rows, fewer = draw(ROWS), draw(ROWS)
    fewer.features.student[DECODED].data[2:] *= -9.0
    valid = torch.arange(ROWS) < 2
    (one,), (other,) = (gradients(spec, each._replace(valid=valid), 2) for each in (rows, fewer))
    torch.testing.assert_close(one[:2], other[:2])


@each_spec
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_dead_and_huge_features_stay_finite(spec: LossSpec, scale: float) -> None:
    rows = draw(dtype=torch.float32, scale=scale)
    assert term(spec)(rows).isfinite().all()
    assert all(each.isfinite().all() for each in gradients(spec, rows))


@each_spec
def test_half_precision_is_computed_in_float32(spec: LossSpec) -> None:
    rows = draw(dtype=torch.bfloat16)
    fine = {tap: value.float() for tap, value in rows.features.student.items()}
    value = term(spec)(rows)
    assert value.dtype == torch.float32
    assert torch.equal(value, term(spec)(rows._replace(features=Features(fine, {}))))
