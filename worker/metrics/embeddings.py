"""Metrics of text embeddings: scores of pairs, retrieval, similarity to a teacher.

Rows are texts, those of a pair at 2 i and 2 i + 1, N pairs in all. Vectors (2 N, D) have any floating dtype, and are
converted to float64 on the CPU. A vector of length 0 has a cosine of 0 with all others.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.metrics.regression import pearson_correlation

AT_ONCE = 2**24
"""Cosines that are computed at a time."""
COMPARED = 1024
"""Texts whose cosines to each other are compared with the teacher's; more would not change the result."""


def pair_cosines(vectors: Tensor) -> Tensor:
    """Cosine of the two texts of each pair, (N,) float64, from vectors (2 N, D)."""
    rows = _directions(vectors)
    return (rows[0::2] * rows[1::2]).sum(1)


def spearman_correlation(values: Tensor, others: Tensor) -> Tensor:
    """Correlation of the ranks of two (N,), a float64 scalar; equal values have their mean rank. 0 if one is
    constant."""
    return pearson_correlation(ranks(values), ranks(others))


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1, (N,) float64, of numbers (N,); equal values have their mean rank."""
    place, counts = _distinct(values.detach().double().cpu())
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place]


def retrieval_ranks(vectors: Tensor, texts: Tensor) -> Tensor:
    """Rank, from 1, of each pair's second text among all second texts, by its cosine to the first: (N,) int64.

    `texts` (2 N,) int64 are numbers, the same for equal texts: a text counts once, and other texts that are paired with
    the same first text do not count. A tie counts against the pair, so that equal vectors have the last rank.
    """
    rows, numbers = _directions(vectors), texts.cpu()
    queries, query_texts = rows[0::2], numbers[0::2]
    document, counts = _distinct(numbers[1::2])
    documents = rows.new_empty(len(counts), rows.shape[1])
    documents[document] = rows[1::2]
    step = max(1, AT_ONCE // max(len(documents), len(queries)))
    parts = range(0, len(queries), step)
    return torch.cat([_places(queries, documents, query_texts, document, slice(part, part + step)) for part in parts])


def _distinct(values: Tensor) -> tuple[Tensor, Tensor]:
    """Index of each value (N,) among the distinct values, which are ascending, and the count of each of these."""
    found: tuple[Tensor, Tensor, Tensor] = torch.unique(values, return_inverse=True, return_counts=True)
    return found[1:]


def _places(queries: Tensor, documents: Tensor, query_texts: Tensor, document: Tensor, part: slice) -> Tensor:
    scores = queries[part] @ documents.T
    matching = scores.gather(1, document[part].unsqueeze(1))
    row, pair = (query_texts[part].unsqueeze(1) == query_texts.unsqueeze(0)).nonzero(as_tuple=True)
    scores[row, document[pair]] = -torch.inf  # all that it is paired with, its matching among them
    return (scores >= matching).sum(1) + 1


def recall_at(places: Tensor, k: int) -> Tensor:
    """Share of the pairs, a scalar, whose second text is among the first `k`; places (P,) int64 count from 1."""
    return (places <= k).double().mean()


def mean_reciprocal_rank(places: Tensor) -> Tensor:
    """Mean of 1 / place, a scalar; places (P,) int64 count from 1."""
    return (1.0 / places.double()).mean()


def teacher_cosine(vectors: Tensor, teacher: Tensor) -> Tensor:
    """Mean cosine, a scalar, between student's and teacher's vectors (N, D), floating, of one width."""
    return (_directions(vectors) * _directions(teacher)).sum(1).mean()


def teacher_correlation(vectors: Tensor, teacher: Tensor) -> Tensor:
    """Pearson correlation, a scalar, between student's and teacher's cosines of any two of the first samples, from
    floating vectors (N, D) and (N, E)."""
    student_cosines, teacher_cosines = (torch.cat(list(_above_diagonal(side))) for side in (vectors, teacher))
    return pearson_correlation(student_cosines, teacher_cosines)


def likeness(vectors: Tensor, teacher: Tensor | None) -> dict[str, Tensor]:
    """`teacher_correlation` of floating vectors (N, D) and (N, E), and `teacher_cosine` if widths are equal; empty
    without a teacher."""
    if teacher is None:
        return {}
    found = {"teacher_correlation": teacher_correlation(vectors, teacher)}
    same = vectors.shape == teacher.shape
    return found | ({"teacher_cosine": teacher_cosine(vectors, teacher)} if same else {})


def _above_diagonal(vectors: Tensor) -> Iterator[Tensor]:
    rows = _directions(vectors[:COMPARED])
    for number, cosines in enumerate(rows @ rows.T):
        yield cosines[number + 1 :]


def _directions(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.detach().double().cpu(), dim=-1)
