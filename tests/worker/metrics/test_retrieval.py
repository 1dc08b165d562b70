"""Metrics of retrieval, compared with trec_eval's and with cases by hand."""

from __future__ import annotations

import pytest
import pytrec_eval
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worker.data.randomness import generator
from worker.errors import UserError
from worker.metrics import retrieval
from worker.metrics.retrieval import Judgements, Relevant, mean_reciprocal_rank_of, ndcg_of, rank_relevant, recall_of


def drawn(queries: int, documents: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors of all, and which documents are relevant (queries, documents) bool, at least one each."""
    random = generator(seed, "retrieval")
    vectors = torch.randn(queries + documents, 6, generator=random, dtype=torch.float64)
    relevant = torch.rand(queries, documents, generator=random) < 0.2
    relevant[torch.arange(queries), torch.randint(documents, (queries,), generator=random)] = True
    return vectors, torch.arange(queries + documents), relevant


def judged(queries: int, relevant: Tensor) -> Judgements:
    pairs = relevant.nonzero() + torch.tensor([0, queries])
    return Judgements(torch.arange(queries), queries + torch.arange(relevant.shape[1]), pairs)


@given(queries=st.integers(1, 5), documents=st.integers(1, 30), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_all_metrics_are_those_of_trec_eval(queries: int, documents: int, seed: int) -> None:
    vectors, texts, relevant = drawn(queries, documents, seed)
    found = rank_relevant(vectors, texts, judged(queries, relevant))
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    cosines = unit[:queries] @ unit[queries:].T
    qrels = {str(q): {str(d): int(relevant[q, d]) for d in range(documents)} for q in range(queries)}
    run = {str(q): {str(d): float(cosines[q, d]) for d in range(documents)} for q in range(queries)}
    names = {"ndcg_cut.10", "ndcg_cut.3", "recall.1,5,10", "recip_rank"}
    each = pytrec_eval.RelevanceEvaluator(qrels, names).evaluate(run).values()
    expected = {name: sum(one[name] for one in each) / queries for name in next(iter(each))}
    ours = {
        "recip_rank": mean_reciprocal_rank_of(found),
        **{f"ndcg_cut_{k}": ndcg_of(found, k) for k in (3, 10)},
        **{f"recall_{k}": recall_of(found, k) for k in (1, 5, 10)},
    }
    assert expected == {name: pytest.approx(float(value), abs=1e-6) for name, value in ours.items()}


def test_the_number_of_cosines_at_a_time_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, texts, relevant = drawn(5, 20, 1)
    whole = rank_relevant(vectors, texts, judged(5, relevant))
    monkeypatch.setattr(retrieval, "AT_ONCE", 41)
    assert torch.equal(rank_relevant(vectors, texts, judged(5, relevant)).rank, whole.rank)


def test_equal_texts_are_one_query_and_one_document() -> None:
    """Rows 0 and 3 are the same query, rows 1 and 5 the same document, which both samples have."""
    vectors = torch.eye(3).repeat(2, 1)[[0, 1, 2, 0, 2, 1]]
    texts = torch.tensor([7, 1, 2, 7, 3, 1])
    pairs = torch.tensor([[0, 1], [3, 4], [3, 5]])
    found = rank_relevant(vectors, texts, Judgements(torch.tensor([0, 3]), torch.tensor([1, 2, 4, 5]), pairs))
    assert (found.queries, found.query.tolist()) == (1, [0, 0])
    assert found.rank.tolist() == [2, 3]  # the document that is not relevant is as similar, and comes first


def test_equal_vectors_have_the_last_ranks() -> None:
    vectors, texts, relevant = drawn(2, 9, 0)
    relevant = torch.arange(9).expand(2, 9) < 2
    found = rank_relevant(torch.ones_like(vectors), texts, judged(2, relevant))
    assert found.rank.tolist() == [8, 9, 8, 9]


def test_the_text_of_the_query_is_no_document_for_it() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    texts = torch.tensor([0, 0, 1])
    documents = Judgements(torch.tensor([0]), torch.tensor([1, 2]), torch.tensor([[0, 2]]))
    assert rank_relevant(vectors, texts, documents).rank.tolist() == [1]
    own = documents._replace(pairs=torch.tensor([[0, 1]]))
    assert rank_relevant(vectors, texts, own).rank.tolist() == [1]


def test_no_queries_are_refused() -> None:
    nothing = Relevant(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), 0)
    with pytest.raises(UserError, match="no queries"):
        ndcg_of(nothing, 10)
