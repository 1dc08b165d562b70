"""Losses of text embeddings, compared with direct formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from app.recipe.losses import Contrastive, EmbeddingDistance, Loss, PairScore, SimilarityMatrix
from worker.data.randomness import generator
from worker.errors import UserError
from worker.losses import build_term
from worker.losses.base import LossInputs, LossTerm
from worker.losses.builder import LossBuilder, TeacherSide

WIDTH, TAUGHT = 5, 7
SPECS: list[Loss] = [
    EmbeddingDistance(),
    EmbeddingDistance(distance="cosine"),
    SimilarityMatrix(temperature=0.2),
    SimilarityMatrix(temperature=0.2, teacher_temperature=0.1),
    SimilarityMatrix(compare="mse"),
    Contrastive(temperature=0.2),
    Contrastive(temperature=0.2, anchors="both", others="all"),
    Contrastive(target="teacher", temperature=0.2, teacher_temperature=0.3),
    Contrastive(target="teacher", temperature=0.2, anchors="both", others="all"),
    PairScore(highest=5.0),
]
AGREEING: list[Loss] = [
    EmbeddingDistance(),
    EmbeddingDistance(distance="cosine"),
    SimilarityMatrix(),
    SimilarityMatrix(compare="mse"),
    Contrastive(target="teacher"),
    Contrastive(target="teacher", anchors="both", others="all"),
]
"""Terms that ask for nothing but what the teacher says."""


def builder(taught: int = WIDTH) -> LossBuilder:
    return LossBuilder({}, {"teacher": TeacherSide(nn.Identity(), {}, outputs=taught)}, WIDTH, param="recipe.losses[0]")


def term_of(spec: Loss, taught: int = WIDTH) -> LossTerm:
    return build_term(spec, builder(taught))


def draw(pairs: int = 4, taught: int = WIDTH, dtype: torch.dtype = torch.float64, seed: int = 0) -> LossInputs:
    """Rows of pairs whose texts all differ."""
    random = generator(seed, "vectors")
    student, teacher = (torch.randn(2 * pairs, width, generator=random, dtype=dtype) for width in (WIDTH, taught))
    scores = 5.0 * torch.rand(pairs, generator=random, dtype=torch.float64).repeat_interleave(2)
    roles = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(pairs)
    labels = torch.stack([scores, torch.arange(2.0 * pairs, dtype=torch.float64), roles], 1)
    return LossInputs(student.requires_grad_(), labels, teacher)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return one @ other / (one.norm() * other.norm())


def among(vectors: Tensor, anchor: int, others: list[int], temperature: float) -> Tensor:
    """Log-probabilities of finding each of the others."""
    logits = torch.stack([cosine(vectors[anchor], vectors[other]) for other in others]) / temperature
    return logits - logits.exp().sum().log()


@pytest.mark.parametrize("spec", SPECS)
def test_gradient_is_that_of_the_value(spec: Loss) -> None:
    rows, term = draw(), term_of(spec)
    assert torch.autograd.gradcheck(lambda vectors: term(rows._replace(student=vectors)), rows.student)


@pytest.mark.parametrize("spec", AGREEING)
def test_a_student_equal_to_its_teacher_has_no_loss(spec: Loss) -> None:
    rows = draw()
    loss = term_of(spec)(rows._replace(teacher=rows.student.detach().clone()))
    torch.testing.assert_close(loss.detach(), torch.zeros_like(loss), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), rows.student)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    assert (term_of(spec)(rows) > 0.0).all()


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec != EmbeddingDistance()])
@given(scale=st.floats(0.01, 100.0), pairs=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_the_length_of_vectors_does_not_count(spec: Loss, scale: float, pairs: int, seed: int) -> None:
    rows, term = draw(pairs, seed=seed), term_of(spec)
    torch.testing.assert_close(term(rows._replace(student=scale * rows.student)), term(rows), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("spec", SPECS)
@given(pairs=st.integers(2, 6), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_the_order_of_the_pairs_does_not_count(spec: Loss, pairs: int, seed: int) -> None:
    rows, term = draw(pairs, seed=seed), term_of(spec)
    order = torch.randperm(pairs, generator=generator(seed, "order"))
    places = (2 * order.unsqueeze(1) + torch.arange(2)).flatten()
    assert rows.teacher is not None
    moved = LossInputs(rows.student[places], rows.labels[places], rows.teacher[places])
    torch.testing.assert_close(term(moved), term(rows)[places], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_vectors_stay_finite(spec: Loss, dtype: torch.dtype) -> None:
    vectors = torch.zeros(4, WIDTH, dtype=dtype)
    vectors[1:3] = 1e4
    vectors[3] = -1e4
    rows = draw(2, dtype=dtype)._replace(student=vectors.requires_grad_())
    loss = term_of(spec)(rows)
    assert loss.dtype == torch.float32
    (gradient,) = torch.autograd.grad(loss.sum(), rows.student)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.couples_rows])
def test_a_batch_of_one_pair_is_finite(spec: Loss) -> None:
    rows = draw(1)
    (gradient,) = torch.autograd.grad(term_of(spec)(rows).sum(), rows.student)
    assert gradient.isfinite().all()


def test_distances_are_those_of_the_library() -> None:
    rows = draw()
    assert rows.teacher is not None
    expected = F.mse_loss(rows.student, rows.teacher, reduction="none").mean(1)
    torch.testing.assert_close(term_of(EmbeddingDistance())(rows), expected)
    expected = torch.stack([1.0 - cosine(*both) for both in zip(rows.student, rows.teacher, strict=True)])
    torch.testing.assert_close(term_of(EmbeddingDistance(distance="cosine"))(rows), expected)


def test_vectors_of_unit_length_have_a_squared_distance_of_twice_their_cosine_s() -> None:
    rows = draw()
    assert rows.teacher is not None
    unit = rows._replace(student=F.normalize(rows.student, dim=-1), teacher=F.normalize(rows.teacher, dim=-1))
    by_cosine = term_of(EmbeddingDistance(distance="cosine"))(unit)
    torch.testing.assert_close(term_of(EmbeddingDistance())(unit), 2.0 / WIDTH * by_cosine)


def test_a_projection_maps_the_student_to_its_teachers_width_and_is_trained() -> None:
    shop = builder(TAUGHT)
    term = build_term(EmbeddingDistance(), shop)
    (name,) = shop.trained
    (projection,) = shop.aux_modules.double().children()
    rows = draw(taught=TAUGHT)
    expected = F.mse_loss(projection(rows.student), rows.teacher, reduction="none").mean(1)
    torch.testing.assert_close(term(rows), expected)
    assert name == "embedding-projection-teacher"
    term(rows).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert all(parameter.grad is not None for parameter in projection.parameters())


@pytest.mark.parametrize(
    ("choice", "taught", "parts"), [("auto", WIDTH, 0), ("auto", TAUGHT, 1), ("linear", WIDTH, 1), ("none", WIDTH, 0)]
)
def test_there_is_a_projection_if_it_is_needed_or_set(choice: Any, taught: int, parts: int) -> None:
    shop = builder(taught)
    build_term(EmbeddingDistance(projection=choice), shop)
    assert len(shop.aux_modules) == parts


def test_widths_that_differ_without_a_projection_are_refused() -> None:
    with pytest.raises(UserError, match="the student's embeddings have 5 dimensions and the teacher's 7") as caught:
        term_of(EmbeddingDistance(projection="none"), TAUGHT)
    assert caught.value.param == "recipe.losses[0].projection"


@pytest.mark.parametrize("taught", [WIDTH, TAUGHT])
def test_similarities_of_any_width_are_compared_row_by_row(taught: int) -> None:
    rows = draw(taught=taught)
    assert rows.teacher is not None
    count = len(rows.student)
    kl, squares = [], []
    for anchor in range(count):
        others = [other for other in range(count) if other != anchor]
        q, p = (among(side, anchor, others, warmth) for side, warmth in ((rows.student, 0.2), (rows.teacher, 0.1)))
        kl.append((p.exp() * (p - q)).sum())
        gaps = [
            cosine(rows.student[anchor], rows.student[other]) - cosine(rows.teacher[anchor], rows.teacher[other])
            for other in others
        ]
        squares.append(torch.stack(gaps).square().mean())
    found = term_of(SimilarityMatrix(temperature=0.2, teacher_temperature=0.1), taught)(rows)
    torch.testing.assert_close(found, torch.stack(kl))
    torch.testing.assert_close(term_of(SimilarityMatrix(compare="mse"), taught)(rows), torch.stack(squares))


def candidates(anchor: int, texts: list[float], others: str) -> list[int]:
    """The candidates of an anchor: its partner, and rows whose texts differ from both of theirs."""
    partner = anchor ^ 1
    rows = [row for row in range(len(texts)) if others == "all" or row % 2 != anchor % 2]
    return [row for row in rows if row == partner or texts[row] not in (texts[anchor], texts[partner])]


@pytest.mark.parametrize("others", ["opposite", "all"])
@pytest.mark.parametrize("anchors", ["first", "both"])
@pytest.mark.parametrize("target", ["pairs", "teacher"])
def test_the_candidates_of_each_anchor_are_the_texts_that_differ(others: Any, anchors: Any, target: Any) -> None:
    """Pairs 0 and 2 have the same second text, pairs 1 and 3 the same first one."""
    rows = draw(taught=TAUGHT)
    assert rows.teacher is not None
    texts = [0.0, 1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 6.0]
    rows.labels[:, 1] = torch.tensor(texts, dtype=torch.float64)
    spec = Contrastive(target=target, temperature=0.2, anchors=anchors, others=others)
    expected = []
    for row in range(len(texts)):
        anchor = row if anchors == "both" else row - row % 2
        found = candidates(anchor, texts, others)
        log_q = among(rows.student, anchor, found, 0.2)
        if target == "pairs":
            expected.append(-log_q[found.index(anchor ^ 1)])
        else:
            log_p = among(rows.teacher, anchor, found, 0.2)
            expected.append((log_p.exp() * (log_p - log_q)).sum())
    torch.testing.assert_close(term_of(spec, TAUGHT)(rows), torch.stack(expected))


def test_a_text_alone_with_its_pair_finds_it() -> None:
    torch.testing.assert_close(term_of(Contrastive())(draw(1)).detach(), torch.zeros(2, dtype=torch.float64))


def test_vectors_that_are_all_the_same_find_nothing() -> None:
    rows = draw(4)._replace(student=torch.ones(8, WIDTH, dtype=torch.float64))
    expected = torch.full((8,), math.log(4), dtype=torch.float64)
    torch.testing.assert_close(term_of(Contrastive())(rows), expected)


def test_a_score_is_what_the_cosine_of_its_pair_becomes() -> None:
    """Cosines 1 and 0 with scores 5 and 1 on a scale from 1 to 5."""
    vectors = torch.tensor([[1.0, 0.0], [3.0, 0.0], [1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    labels = torch.tensor([[5.0, 0.0], [5.0, 1.0], [1.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    loss = term_of(PairScore(lowest=1.0, highest=5.0))(LossInputs(vectors, labels, None))
    torch.testing.assert_close(loss, torch.zeros(4, dtype=torch.float64))
    loss = term_of(PairScore(lowest=1.0, highest=9.0))(LossInputs(vectors, labels, None))
    torch.testing.assert_close(loss, torch.tensor([0.25, 0.25, 0.0, 0.0], dtype=torch.float64))
