"""Metrics of retrieval: queries rank all documents by cosine, and those that are relevant should come first.

Rows are texts (R), with numbers that are the same for equal texts. Vectors (R, D) have any floating dtype, and are
converted to float64 on the CPU. Relevance is binary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.errors import UserError

AT_ONCE = 2**24
"""Cosines that are computed at a time."""


class Relevant(NamedTuple):
    """The relevant documents (P,) of Q queries, as ranked."""

    query: Tensor
    """(P,) int64: number of the query, from 0 to Q - 1, ascending."""
    rank: Tensor
    """(P,) int64: rank of the document, from 1, among all documents."""
    queries: int


class Judgements(NamedTuple):
    """Rows of queries and documents, and pairs (J,) of a query and a document that is relevant to it, all int64."""

    queries: Tensor
    """Rows (Q',), one for every judged sample; equal texts are one query."""
    documents: Tensor
    """Rows (D',); equal texts are one document."""
    pairs: Tensor
    """(J, 2): a row of a query and a row of a document."""


def rank_relevant(vectors: Tensor, texts: Tensor, judged: Judgements) -> Relevant:
    """Ranks of the relevant documents, for vectors (R, D) and numbers of texts (R,).

    A document that is not relevant and as similar as a relevant one comes before it, so that equal vectors have the
    last rank. A query's own text is no document for it, unless it is relevant.
    """
    rows, numbers = F.normalize(vectors.detach().double().cpu(), dim=-1), texts.cpu().long()
    query_texts, documents = (torch.unique(numbers[side]) for side in (judged.queries, judged.documents))
    query_rows = _row_of(query_texts, numbers, judged.queries)
    document_rows = rows[_row_of(documents, numbers, judged.documents)]
    query, document = numbers[judged.pairs.T.contiguous()]
    sides = torch.searchsorted(query_texts, query), torch.searchsorted(documents, document)
    pairs = torch.unique(torch.stack(sides, 1), dim=0)
    step = max(1, AT_ONCE // max(len(documents), 1))
    ranks = [torch.empty(0, dtype=torch.int64)]
    for part in pairs.split(step):
        cosines = rows[query_rows[part[:, 0]]] @ document_rows.T
        own = query_texts[part[:, 0]].unsqueeze(1) == documents
        ranks.append(_ranks(cosines.masked_fill(own, -torch.inf), cosines, part, pairs))
    return Relevant(pairs[:, 0], torch.cat(ranks), len(query_texts))


def _row_of(texts: Tensor, numbers: Tensor, rows: Tensor) -> Tensor:
    """A row (T,) among `rows` for each of the ascending `texts` (T,)."""
    found = torch.empty(len(texts), dtype=torch.int64)
    found[torch.searchsorted(texts, numbers[rows])] = rows
    return found


def _ranks(cosines: Tensor, whole: Tensor, part: Tensor, pairs: Tensor) -> Tensor:
    """Ranks (n,) of the documents of `part` (n, 2), from cosines (n, D) without and with the query's own text; `pairs`
    (P, 2) are those of all queries."""
    matching = whole.gather(1, part[:, 1:])
    relevant = torch.zeros(cosines.shape, dtype=torch.bool)
    row, pair = (part[:, :1] == pairs[:, 0]).nonzero(as_tuple=True)
    relevant[row, pairs[pair, 1]] = True
    earlier = torch.arange(cosines.shape[1]) < part[:, 1:]
    before = (whole > matching) | ((whole == matching) & earlier)
    return before.where(relevant, cosines >= matching).sum(1) + 1


def mean_reciprocal_rank_of(found: Relevant) -> Tensor:
    """Mean over the queries of 1 / rank of the first relevant document, a float64 scalar."""
    return _per_query(found, 1.0 / found.rank.double(), "amax").mean()


def recall_of(found: Relevant, k: int) -> Tensor:
    """Mean over the queries of the share of their relevant documents among the first `k`, a float64 scalar."""
    hits, total = (_per_query(found, each.double(), "sum") for each in (found.rank <= k, torch.ones_like(found.rank)))
    return (hits / total).mean()


def ndcg_of(found: Relevant, k: int) -> Tensor:
    """Mean over the queries of the normalised discounted cumulative gain of the first `k` documents, with the gain 1
    for each that is relevant, a float64 scalar; as trec_eval's `ndcg_cut`."""
    gains = (1.0 / (found.rank.double() + 1.0).log2()).where(found.rank <= k, 0.0)
    total = _per_query(found, torch.ones_like(gains), "sum").long().clamp(max=k)
    ideal = (1.0 / (torch.arange(k, dtype=torch.float64) + 2.0).log2()).cumsum(0)
    return (_per_query(found, gains, "sum") / ideal[total - 1]).mean()


def _per_query(found: Relevant, values: Tensor, reduce: str) -> Tensor:
    """Values (P,) reduced for each query (Q,); raises UserError (`invalid_data`) if there are no queries."""
    if not found.queries:
        raise UserError("invalid_data", "there are no queries to evaluate on; accepted: one or more", "data.eval")
    empty = torch.zeros(found.queries, dtype=torch.float64)
    return empty.scatter_reduce(0, found.query, values, reduce, include_self=False)
