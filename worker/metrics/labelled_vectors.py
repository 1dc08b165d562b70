"""Metrics of vectors of samples with classes: retrieval, verification, and classification by class means.

Vectors (N, D) have any floating dtype and are compared by their cosines, in float64 on the CPU; labels (N,) int64. A
vector of length 0 has a cosine of 0 with all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.metrics.embeddings import ranks

AT_ONCE = 2**23
"""Cosines that are sorted at a time."""
PAIRED = 1024
"""Samples whose pairs are verified; of more, so many are taken at equal distances."""


def retrieval(vectors: Tensor, labels: Tensor, recall_at: Sequence[int]) -> dict[str, Tensor]:
    """`map`, `map_at_r` and `recall_at_<k>`, float64 scalars: each sample is a query among all others, those of its
    class are relevant, and samples alone in their class are no queries.

    `map_at_r` (2003.08505) averages the precision at the relevant ones of the first R, of as many as are relevant. A
    tie counts against the query, so that equal vectors find nothing.
    """
    rows, numbers = _directions(vectors), labels.cpu()
    parts = [_of_queries(rows, numbers, part, recall_at) for part in _parts(len(rows))]
    totals = torch.cat(parts).mean(0)
    names = ("map", "map_at_r", *(f"recall_at_{k}" for k in recall_at))
    return dict(zip(names, totals, strict=True))


def _parts(count: int) -> Iterator[slice]:
    step = max(1, AT_ONCE // count)
    return (slice(first, first + step) for first in range(0, count, step))


def _of_queries(rows: Tensor, labels: Tensor, part: slice, recall_at: Sequence[int]) -> Tensor:
    """Of each query of a part a row: average precision, that of the first R, and whether the first k find one."""
    own = torch.arange(len(rows))[part].unsqueeze(1)
    scores = rows[part] @ rows.T
    relevant = labels[part].unsqueeze(1) == labels
    relevant.scatter_(1, own, False)
    scores.scatter_(1, own, -torch.inf)
    kept = relevant.any(1)
    found = _sorted(scores[kept], relevant[kept]).double()
    count, place = found.sum(1), torch.arange(1, len(rows) + 1, dtype=torch.float64)
    precision = found.cumsum(1) / place * found
    first = precision.where(place <= count.unsqueeze(1), 0.0)
    recalls = [(found[:, :k] > 0).any(1).double() for k in recall_at]
    return torch.stack([precision.sum(1) / count, first.sum(1) / count, *recalls], 1)


def _sorted(scores: Tensor, relevant: Tensor) -> Tensor:
    """Relevance (Q, N) bool by falling scores; of equal scores the irrelevant come first."""
    by_relevance = relevant.byte().argsort(dim=1, stable=True)
    order = scores.gather(1, by_relevance).argsort(dim=1, descending=True, stable=True)
    return relevant.gather(1, by_relevance.gather(1, order))


def chance(labels: Tensor) -> dict[str, float]:
    """Expected `recall_at_1` and `map_at_r` of a random order, for labels (N,) int64."""
    sizes = labels.cpu().bincount()
    others = len(labels) - 1
    total, recall, precision = 0, 0.0, 0.0
    distinct: tuple[Tensor, Tensor] = torch.unique(sizes[sizes > 1], return_counts=True)
    for size, classes in zip(*(part.tolist() for part in distinct), strict=True):
        relevant, queries = size - 1, size * classes
        total += queries
        recall += queries * relevant / others
        precision += queries * _random_precision(relevant, others)
    return {"recall_at_1": recall / total, "map_at_r": precision / total}


def _random_precision(relevant: int, others: int) -> float:
    place = torch.arange(1, relevant + 1, dtype=torch.float64)
    further = (relevant - 1) / (others - 1) if others > 1 else 0.0
    at_place = relevant / others * (1 + (place - 1) * further) / place
    return float(at_place.sum() / relevant)


def verification(vectors: Tensor, labels: Tensor, false_rates: Sequence[str]) -> dict[str, Tensor]:
    """`auc` and `tar_at_far_<rate>`, float64 scalars, of deciding by its cosine whether a pair is of one class; empty
    if all pairs are, or none. A rate is a number as text. Equal cosines are decided alike.

    The accepted share of matching pairs (TAR) is the largest for which at most the given share of the others is
    accepted.
    """
    chosen = torch.linspace(0, len(labels) - 1, min(PAIRED, len(labels)), dtype=torch.float64).round().long()
    rows, numbers = _directions(vectors)[chosen], labels.cpu()[chosen]
    one, other = torch.triu_indices(len(rows), len(rows), offset=1).unbind()
    return _decided((rows @ rows.T)[one, other], numbers[one] == numbers[other], false_rates)


def pair_verification(vectors: Tensor, same: Tensor, false_rates: Sequence[str]) -> dict[str, Tensor]:
    """The metrics of `verification` for given pairs: rows 2 i and 2 i + 1 of `vectors`, of one class if `same` (N,)
    int64 is 1."""
    rows = _directions(vectors)
    return _decided((rows[0::2] * rows[1::2]).sum(1), same.cpu() == 1, false_rates)


def _decided(cosines: Tensor, same: Tensor, false_rates: Sequence[str]) -> dict[str, Tensor]:
    """Metrics of deciding by `cosines` (P,) float64 whether pairs are the `same` (P,) bool."""
    matching, others = cosines[same], cosines[~same]
    if not len(matching) or not len(others):
        return {}
    places = ranks(torch.cat([matching, others]))[: len(matching)].sum()
    wins = places - len(matching) * (len(matching) + 1) / 2
    falling = others.sort(descending=True).values
    accepted = {rate: falling[int(float(rate) * len(others) + 1e-9)] for rate in false_rates}
    found = {f"tar_at_far_{rate}": (matching > bound).double().mean() for rate, bound in accepted.items()}
    return {"auc": wins / (len(matching) * len(others)), **found}


def class_mean_accuracy(vectors: Tensor, labels: Tensor) -> Tensor | None:
    """Share of samples, a float64 scalar, whose nearest class mean by the cosine is their class's; none if no class has
    two samples. Of each class every other sample, from the first on, is in the mean of directions, and the rest is
    classified."""
    rows = _directions(vectors)
    place, stored = every_other(labels.cpu())
    if bool(stored.all()):
        return None
    means = rows.new_zeros(int(place.max()) + 1, rows.shape[1]).index_add_(0, place[stored], rows[stored])
    nearest = (rows[~stored] @ F.normalize(means, dim=-1).T).argmax(1)
    right: Tensor = nearest == place[~stored]
    return right.double().mean()


def every_other(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Classes of `labels` (N,) int64 numbered from 0 without gaps, (N,) int64, and every other sample of each class,
    from the first on, (N,) bool."""
    place: Tensor = torch.unique(labels, return_inverse=True)[1]
    order, sizes = place.argsort(stable=True), place.bincount()
    within = torch.empty_like(place)
    within[order] = torch.arange(len(place)) - (sizes.cumsum(0) - sizes)[place[order]]
    return place, within % 2 == 0


def _directions(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.detach().double().cpu(), dim=-1)
