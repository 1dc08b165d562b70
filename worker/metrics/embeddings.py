"""Measures of vectors of texts: scores of pairs, retrieval, likeness to a teacher.

Rows are texts, those of a pair at 2 i and 2 i + 1, N pairs in all. Vectors (2 N, D) come in any floating dtype, and are
taken to float64 on the CPU. A vector of length 0 has a cosine of 0 with all others.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.metrics.regression import pearson_correlation

AT_ONCE = 2**24
"""Cosines that are looked at together."""
LOOKED_AT = 1024
"""Texts whose cosines to each other tell how like its teacher a student is; more would tell the same."""


def pair_cosines(vectors: Tensor) -> Tensor:
    """Cosine of the two texts of each pair (N,)."""
    rows = _directions(vectors)
    return (rows[0::2] * rows[1::2]).sum(1)


def spearman_correlation(values: Tensor, others: Tensor) -> Tensor:
    """Of ranks, equal values sharing the mean of theirs; 0 where one side is constant. Both are (N,)."""
    return pearson_correlation(ranks(values), ranks(others))


def ranks(values: Tensor) -> Tensor:
    """From 1, float64 (N,): equal values share the mean of their ranks."""
    place, counts = _told_apart(values.detach().double().cpu())
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place]


def retrieval_ranks(vectors: Tensor, texts: Tensor) -> Tensor:
    """Place, from 1, at which the first text of each pair finds its second one among all second texts (N,) int64.

    `texts` (2 N,) are numbers that equal texts share: a text counts once, and others that the same first text is paired
    with do not count. A tie counts as lost, so that vectors which are all the same find nothing.
    """
    rows, numbers = _directions(vectors), texts.cpu()
    queries, asked = rows[0::2], numbers[0::2]
    document, counts = _told_apart(numbers[1::2])
    documents = rows.new_empty(len(counts), rows.shape[1])
    documents[document] = rows[1::2]
    step = max(1, AT_ONCE // max(len(documents), len(queries)))
    parts = range(0, len(queries), step)
    return torch.cat([_places(queries, documents, asked, document, slice(part, part + step)) for part in parts])


def _told_apart(values: Tensor) -> tuple[Tensor, Tensor]:
    """The place of each value (N,) among those that differ, which rise, and how often each of these is there."""
    found: tuple[Tensor, Tensor, Tensor] = torch.unique(values, return_inverse=True, return_counts=True)
    return found[1:]


def _places(queries: Tensor, documents: Tensor, asked: Tensor, document: Tensor, part: slice) -> Tensor:
    scores = queries[part] @ documents.T
    own = scores.gather(1, document[part].unsqueeze(1))
    row, pair = (asked[part].unsqueeze(1) == asked.unsqueeze(0)).nonzero(as_tuple=True)
    scores[row, document[pair]] = -torch.inf  # all that it is paired with, its own among them
    return (scores >= own).sum(1) + 1


def recall_at(places: Tensor, k: int) -> Tensor:
    """Share of the pairs, a scalar, whose second text is among the first `k`; places (P,) int64 count from 1."""
    return (places <= k).double().mean()


def mean_reciprocal_rank(places: Tensor) -> Tensor:
    """Mean of 1 over the place, a scalar; places (P,) int64 count from 1."""
    return (1.0 / places.double()).mean()


def teacher_cosine(vectors: Tensor, teacher: Tensor) -> Tensor:
    """Mean cosine, a scalar, of the vectors (N, D) of both sides, floating, which have one width."""
    return (_directions(vectors) * _directions(teacher)).sum(1).mean()


def teacher_correlation(vectors: Tensor, teacher: Tensor) -> Tensor:
    """Pearson correlation, a scalar, of both sides' cosines of any two of the first texts, from floating vectors (N, D)
    and (N, E)."""
    found, wanted = (torch.cat(list(_above_diagonal(side))) for side in (vectors, teacher))
    return pearson_correlation(found, wanted)


def _above_diagonal(vectors: Tensor) -> Iterator[Tensor]:
    rows = _directions(vectors[:LOOKED_AT])
    for number, cosines in enumerate(rows @ rows.T):
        yield cosines[number + 1 :]


def _directions(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.detach().double().cpu(), dim=-1)
