"""Hard negatives of queries: samples of a query, its positives and the texts that its vector is closest to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.data.mining import Mining
from worker.data.batches import Batch, whole_split
from worker.data.pairs import NEGATIVE, PADDED, PADDING, POSITIVE, QUERY, ROLE, SCORE, TEXT

AT_ONCE = 2**24
"""Cosines that are computed at a time."""
NO_ROW = -1


class DistinctTexts(NamedTuple):
    """The different texts of the samples of a split."""

    rows: Tensor
    """(T,) int64: a row with each text."""
    text_of: Tensor
    """(R,) int64: number of the text of each row, an index into `rows`; that of padding is 0."""
    documents: Tensor
    """(M,) int64: numbers of those texts that are candidates of a query, ascending."""


class Mined(NamedTuple):
    """Negatives of Q queries."""

    rows: Tensor
    """(Q, count) int64: a row with the text of each negative, the most similar first; `NO_ROW` behind the last."""
    filtered: Tensor
    """(Q,) int64: texts that the rule left out."""


def texts_of(samples: Batch) -> DistinctTexts:
    """The texts of samples of pairs or of queries with candidates."""
    numbers, roles = samples.targets[:, TEXT].long().cpu(), samples.targets[:, ROLE].cpu()
    distinct: tuple[Tensor, Tensor] = torch.unique(numbers[roles != PADDING], return_inverse=True)
    known, text_of = distinct
    there = (roles != PADDING).nonzero().squeeze(1)
    rows = torch.full((len(known),), len(samples)).scatter_reduce(0, text_of, there, "amin")
    everywhere = torch.zeros_like(numbers).index_put((there,), text_of)
    documents: Tensor = torch.unique(everywhere[(roles == POSITIVE) | (roles == NEGATIVE)])
    return DistinctTexts(rows, everywhere, documents)


def mine(samples: Batch, texts: DistinctTexts, vectors: Tensor, spec: Mining) -> Mined:
    """Negatives of the queries of `samples`, from floating vectors (T, D) of their texts."""
    size = samples.rows_per_sample
    directions = F.normalize(vectors.float(), dim=-1)
    documents = directions[texts.documents.to(vectors.device)]
    place = torch.full((len(texts.rows),), NO_ROW)
    place[texts.documents] = torch.arange(len(texts.documents))
    roles = samples.targets[:, ROLE].view(-1, size).cpu()
    own = place[texts.text_of.view(-1, size)].where((roles == QUERY) | (roles == POSITIVE), NO_ROW)
    queries, first = texts.text_of[::size], own[:, 1]
    found = [
        _nearest(directions[queries[part].to(vectors.device)] @ documents.mT, own[part], first[part], spec)
        for part in _parts(len(queries), len(documents))
    ]
    nearest = torch.cat([part for part, _ in found])
    rows = texts.rows[texts.documents[nearest]].where(nearest != NO_ROW, NO_ROW)
    return Mined(rows, torch.cat([filtered for _, filtered in found]))


def _parts(queries: int, documents: int) -> Iterator[Tensor]:
    parts: tuple[Tensor, ...] = torch.split(torch.arange(queries), max(1, AT_ONCE // max(documents, 1)))
    yield from parts


def _nearest(cosines: Tensor, own: Tensor, first: Tensor, spec: Mining) -> tuple[Tensor, Tensor]:
    """Numbers (q, count) int64 of the most similar documents, and how many (q,) int64 were filtered, on the CPU; from
    cosines (q, M), numbers (q, n) of own documents, and those (q,) of the first positives, `NO_ROW` for none."""
    own = own.to(cosines.device)
    positive = cosines.gather(1, first.to(cosines.device).unsqueeze(1))
    query, column = (own != NO_ROW).nonzero(as_tuple=True)
    cosines[query, own[query, column]] = -torch.inf
    if skipped := min(spec.skip_first, cosines.shape[1]):
        cosines.scatter_(1, cosines.topk(skipped).indices, -torch.inf)
    refused = cosines > _limits(positive, spec)
    filtered = refused.sum(1)
    values, places = cosines.masked_fill_(refused, -torch.inf).topk(min(spec.count, cosines.shape[1]))
    nearest = places.where(values.isfinite(), NO_ROW)
    return F.pad(nearest, (0, spec.count - nearest.shape[1]), value=NO_ROW).cpu(), filtered.cpu()


def _limits(positive: Tensor, spec: Mining) -> Tensor:
    """Highest cosines of negatives, for those of the first positives (q, 1)."""
    if spec.keep == "margin":
        return positive - spec.margin
    return positive - (1.0 - spec.ratio) * positive.abs() if spec.keep == "ratio" else torch.full_like(positive, 2.0)


def with_negatives(samples: Batch, negatives: Tensor) -> Batch:
    """The queries and positives of `samples`, and behind them the texts of the rows `negatives` (Q, n) int64 instead
    of their own negatives; padded to the longest."""
    size = samples.rows_per_sample
    roles = samples.targets[:, ROLE].view(-1, size).cpu()
    rows = torch.arange(len(samples)).view(-1, size)
    rows = torch.cat([rows.where((roles == QUERY) | (roles == POSITIVE), NO_ROW), negatives], 1)
    order = (rows == NO_ROW).sort(dim=1, stable=True).indices  # a query and its positives come first in each
    rows = rows.gather(1, order)
    rows = rows[:, : int((rows != NO_ROW).sum(1).max())]
    mined = (order >= size)[:, : rows.shape[1]] & (rows != NO_ROW)
    padding = rows == NO_ROW
    taken = rows.where(~padding, rows[:, :1]).flatten().to(samples.storage_device)
    inputs = {name: values[taken] for name, values in samples.inputs.items()}
    targets = samples.targets[taken]
    for chosen, role in ((mined, NEGATIVE), (padding, PADDING)):
        places = chosen.flatten().to(targets.device)
        targets[places, ROLE], targets[places, SCORE] = role, torch.nan
    targets[padding.flatten().to(targets.device), TEXT] = PADDED
    return replace(whole_split(inputs, targets, rows.shape[1]), epoch=samples.epoch)
