"""Metrics of text embeddings, against numbers computed by hand and plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from worker.metrics import embeddings
from worker.metrics.embeddings import (
    mean_reciprocal_rank,
    pair_cosines,
    ranks,
    recall_at,
    retrieval_ranks,
    spearman_correlation,
    teacher_correlation,
    teacher_cosine,
)

RISING = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])


def numbered(rows: int) -> Tensor:
    return torch.arange(rows).double()


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    assert ranks(torch.tensor([10.0, 20.0, 10.0, 5.0, 20.0, 20.0])).tolist() == [2.5, 5.0, 2.5, 1.0, 5.0, 5.0]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_equal_values_have_their_mean_rank(values: list[int]) -> None:
    expected = [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]
    assert ranks(torch.tensor(values)).tolist() == expected


def test_ranks_that_agree_correlate_whatever_the_values_are() -> None:
    assert float(spearman_correlation(RISING.exp(), RISING)) == pytest.approx(1.0)
    assert float(spearman_correlation(-RISING.exp(), RISING)) == pytest.approx(-1.0)


def test_the_correlation_of_ranks_is_that_of_the_textbook() -> None:
    """Rank differences 1, 1, 0, 1, 1: 1 - 6 * 4 / (5 * 24)."""
    assert float(spearman_correlation(torch.tensor([20.0, 10.0, 30.0, 50.0, 40.0]), RISING)) == pytest.approx(0.8)


def test_what_is_constant_correlates_with_nothing() -> None:
    assert float(spearman_correlation(torch.ones(5), RISING)) == 0.0


def test_a_cosine_is_that_of_the_two_texts_of_a_pair() -> None:
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0], [0.0, 3.0], [0.0, 0.0], [1.0, 0.0]])
    assert pair_cosines(vectors).tolist() == pytest.approx([1.0, math.sqrt(0.5), 0.0])


def plain_places(vectors: Tensor, texts: list[int]) -> list[int]:
    rows = torch.nn.functional.normalize(vectors.double(), dim=-1)
    places = []
    for query in range(0, len(texts), 2):
        paired = {texts[row + 1] for row in range(0, len(texts), 2) if texts[row] == texts[query]}
        own = float(rows[query] @ rows[query + 1])
        better = {texts[row] for row in range(1, len(texts), 2) if float(rows[query] @ rows[row]) >= own - 1e-12}
        places.append(1 + len(better - paired))
    return places


@pytest.mark.parametrize("at_once", [1, 7, 2**24])
def test_a_text_is_ranked_among_all_that_differ_from_it(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Texts 100 and 101 are what several look for, and 0 looks for two."""
    monkeypatch.setattr(embeddings, "AT_ONCE", at_once)
    texts = [0, 100, 1, 101, 0, 102, 2, 100, 3, 103, 4, 101]
    by_text = {text: torch.randn(3, generator=torch.Generator().manual_seed(text)) for text in texts}
    vectors = torch.stack([by_text[text] for text in texts])
    found = retrieval_ranks(vectors, torch.tensor(texts, dtype=torch.float64)).tolist()
    assert found == plain_places(vectors, texts)
    assert max(found) > 1


def test_vectors_that_are_all_the_same_find_nothing() -> None:
    assert retrieval_ranks(torch.ones(8, 3), numbered(8)).tolist() == [4, 4, 4, 4]


def test_perfect_vectors_find_everything_first() -> None:
    places = retrieval_ranks(torch.eye(4).repeat_interleave(2, 0), numbered(8))
    assert places.tolist() == [1, 1, 1, 1]
    assert float(recall_at(places, 1)) == float(mean_reciprocal_rank(places)) == 1.0


def test_recall_counts_what_is_found_early_and_the_reciprocal_rank_how_early() -> None:
    places = torch.tensor([1, 2, 4, 10])
    assert [float(recall_at(places, k)) for k in (1, 2, 5, 10)] == [0.25, 0.5, 0.75, 1.0]
    assert float(mean_reciprocal_rank(places)) == pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 10) / 4)


def test_likeness_to_a_teacher_is_that_of_vectors_and_of_their_cosines() -> None:
    vectors = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    turned = vectors @ torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1))).Q
    assert float(teacher_cosine(3.0 * vectors, vectors)) == pytest.approx(1.0)
    assert float(teacher_cosine(-vectors, vectors)) == pytest.approx(-1.0)
    assert float(teacher_cosine(turned, vectors)) < 0.9
    assert float(teacher_correlation(torch.cat([turned, torch.zeros(6, 2)], 1), vectors)) == pytest.approx(1.0)
    assert float(teacher_correlation(torch.randn(6, 4), vectors)) < 0.99


def test_each_two_texts_count_once_in_the_likeness_of_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cosines 1, 0, 0 against 0, 0, 1 of pairs (0, 1), (0, 2), (1, 2)."""
    student, teacher = torch.eye(2)[[0, 0, 1]], torch.eye(2)[[0, 1, 1]]
    assert float(teacher_correlation(student, teacher)) == pytest.approx(-0.5)
    more = torch.cat([student, torch.randn(3, 2)]), torch.cat([teacher, torch.randn(3, 2)])
    monkeypatch.setattr(embeddings, "COMPARED", 3)
    assert float(teacher_correlation(*more)) == pytest.approx(-0.5)
