"""Losses of vectors with classes: properties, and parts that are trained."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.recipe.losses import Cfcd, Loss, NormFace, Unpg
from worker.data.randomness import generator
from worker.errors import UserError
from worker.losses import build_term
from worker.losses.base import LossInputs, LossTerm
from worker.losses.builder import LossBuilder
from worker.losses.class_vectors import cosines_with, madacos, madacos_logits
from worker.losses.objective import TOTAL, BatchOutputs, Objective
from worker.tensors import IGNORED

WIDTH, CLASSES = 5, 4
SPECS: list[Loss] = [
    NormFace(),
    NormFace(scale=32.0, learn_scale=False),
    NormFace(margin="cosface", learn_scale=False, scale=8.0),
    NormFace(margin="arcface", margin_size=0.2),
    Unpg(scale=8.0, whiskers=0.5),
    Unpg(scale=8.0, margin="cosface"),
    Cfcd(),
    Cfcd(mass="mean", alpha=0.1),
    Cfcd(mass="median"),
]
FROM_BATCH = [spec for spec in SPECS if isinstance(spec, Cfcd)]
"""Their scale and margin depend on the vectors, but have no gradient."""


def builder(classes: int = CLASSES) -> LossBuilder:
    return LossBuilder({}, {}, WIDTH, param="recipe.losses[0]", classes=classes)


def term_of(spec: Loss) -> LossTerm:
    made = builder()
    term = build_term(spec, made)
    made.aux_modules.double()
    return term


def draw(rows: int = 6, dtype: torch.dtype = torch.float64, seed: int = 0) -> LossInputs:
    random = generator(seed, "vectors")
    vectors = torch.randn(rows, WIDTH, generator=random, dtype=dtype)
    return LossInputs(vectors.requires_grad_(), torch.randint(CLASSES, (rows,), generator=random), None)


def gradient(term: LossTerm, rows: LossInputs) -> Tensor:
    (found,) = torch.autograd.grad(term(rows).sum(), rows.student)
    return found


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec not in FROM_BATCH])
def test_gradient_is_that_of_the_value(spec: Loss) -> None:
    rows, term = draw(), term_of(spec)
    assert torch.autograd.gradcheck(lambda vectors: term(rows._replace(student=vectors)), rows.student)


@pytest.mark.parametrize("spec", SPECS)
@given(scale=st.floats(0.01, 100.0), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_the_length_of_vectors_does_not_count_and_has_no_gradient(spec: Loss, scale: float, seed: int) -> None:
    rows, term = draw(seed=seed), term_of(spec)
    torch.testing.assert_close(term(rows._replace(student=scale * rows.student)), term(rows), rtol=1e-8, atol=1e-10)
    along = (gradient(term, rows) * rows.student).sum(1)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-10)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_vectors_have_finite_values(spec: Loss, dtype: torch.dtype) -> None:
    vectors = torch.zeros(3, WIDTH, dtype=dtype)
    vectors[1], vectors[2] = 1e4, -1e4
    term = build_term(spec, builder())
    rows = LossInputs(vectors.requires_grad_(), torch.tensor([0, 1, 2]), None)
    assert term(rows).dtype == torch.float32
    assert term(rows).isfinite().all()
    assert gradient(term, rows).isfinite().all()


@pytest.mark.parametrize("spec", SPECS)
def test_ignored_rows_change_neither_value_nor_gradient(spec: Loss) -> None:
    made = builder()
    objective, rows = Objective([spec], made), draw()
    made.aux_modules.double()
    labels = torch.cat([rows.labels, torch.full((2,), IGNORED)])
    vectors = torch.cat([rows.student.detach(), torch.zeros(1, WIDTH), torch.ones(1, WIDTH)]).requires_grad_()
    values = [
        objective(BatchOutputs(seen, given, {}), objective.count(given))[TOTAL]
        for seen, given in ((rows.student, rows.labels), (vectors, labels))
    ]
    torch.testing.assert_close(values[0], values[1])
    (alone,), (more,) = (torch.autograd.grad(v, at) for v, at in zip(values, (rows.student, vectors), strict=True))
    torch.testing.assert_close(more, torch.cat([alone, torch.zeros(2, WIDTH, dtype=torch.float64)]))
    nothing = torch.full((8,), IGNORED)
    value = objective(BatchOutputs(vectors, nothing, {}), objective.count(nothing))[TOTAL]
    (none,) = torch.autograd.grad(value, vectors)
    assert float(value.detach()) == 0.0
    assert not none.any()


def test_without_a_margin_it_is_the_libraries_cross_entropy_of_scaled_cosines() -> None:
    made = builder()
    term = build_term(NormFace(scale=7.0), made)
    made.aux_modules.double()
    rows, weight = draw(), made.aux_modules["classes-vectors"].weight
    assert isinstance(weight, Tensor)
    cosine = F.cosine_similarity(rows.student.unsqueeze(1), weight.unsqueeze(0), dim=-1)
    torch.testing.assert_close(term(rows), F.cross_entropy(7.0 * cosine, rows.labels, reduction="none"))


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_it_can_t_fall_below_its_bound_which_opposed_classes_reach(scale: float) -> None:
    """Vectors of a simplex, each with its own class."""
    corners = torch.eye(WIDTH, dtype=torch.float64) - 1.0 / WIDTH
    made = builder(WIDTH)
    term = build_term(NormFace(scale=scale), made)
    made.aux_modules.double()["classes-vectors"].weight.data.copy_(corners)  # type: ignore[union-attr,operator]
    loss = term(LossInputs(corners, torch.arange(WIDTH), None)).detach()
    bound = math.log1p((WIDTH - 1) * math.exp(-scale * WIDTH / (WIDTH - 1)))
    torch.testing.assert_close(loss, torch.full_like(loss, bound))
    assert float(term_of(NormFace(scale=scale))(draw()).detach().min()) > 0.0


@pytest.mark.parametrize("margin", ["cosface", "arcface"])
def test_a_margin_raises_the_loss_and_one_of_size_0_is_none(margin: str) -> None:
    rows, plain = draw(), term_of(NormFace())(draw())
    some, none = (NormFace.model_validate({"kind": "normface", "margin": margin, **size}) for size in ({}, NO_MARGIN))
    assert (term_of(some)(rows) > plain).all()
    torch.testing.assert_close(term_of(none)(rows), plain, rtol=1e-9, atol=1e-9)


NO_MARGIN = {"margin_size": 0.0}


@pytest.mark.parametrize("alpha", [0.02, 0.3])
def test_the_median_sample_has_a_probability_of_alpha_where_there_is_a_margin(alpha: float) -> None:
    """Vectors close to those of their classes, far from the others."""
    cosines = torch.full((5, 4), 0.1, dtype=torch.float64)
    labels, own = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([0.5, 0.9, 0.8, 0.6, 0.7], dtype=torch.float64)
    cosines[torch.arange(5), labels] = own
    batch = madacos(Cfcd(alpha=alpha), cosines, labels)
    assert float(batch.median) == 0.7
    assert float(batch.margin) > 0.0
    probability = madacos_logits(cosines, labels, batch).softmax(1)[4, 0]
    assert float(probability) == pytest.approx(alpha)


def test_the_scale_of_a_batch_has_bounds() -> None:
    labels = torch.tensor([0, 1])
    scales = [madacos(Cfcd(), value * torch.eye(2), labels).scale for value in (-1.0, 1.0)]
    assert [float(scale) for scale in scales] == [32.0, 512.0]


def test_terms_of_one_name_share_their_vectors_which_are_trained_with_the_scale() -> None:
    made = builder()
    for spec in (NormFace(), NormFace(margin="cosface"), NormFace(name="others")):
        build_term(spec, made)
    assert made.trained == {"classes-vectors", "classes-scale-10", "others-vectors", "others-scale-10"}
    assert made.aux_modules["classes-vectors"].weight.shape == (CLASSES, WIDTH)
    again = builder()
    build_term(NormFace(), again)
    same = made.aux_modules["classes-vectors"].weight, again.aux_modules["classes-vectors"].weight
    torch.testing.assert_close(*same, rtol=0, atol=0)


def test_labels_that_are_no_classes_are_refused() -> None:
    with pytest.raises(UserError, match="its labels are no classes") as caught:
        build_term(NormFace(), builder(0))
    assert caught.value.param == "recipe.losses[0].kind"


def test_directions_of_zero_have_a_cosine_of_zero() -> None:
    assert not cosines_with(torch.zeros(2, 3), torch.ones(4, 3)).any()
