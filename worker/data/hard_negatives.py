"""Classes that are close to each other in a pool of embedded samples, and batches of such classes.

C classes, M samples of the pool, D dimensions, W nearest classes of each class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.data.class_batches import even_order, members_of, sample_class
from worker.data.randomness import generator

AT_ONCE = 2**24
"""Cosines that are computed at a time."""
NO_CLASS = -1
NAME = "hard-negatives"


class Confusion(NamedTuple):
    """How similar classes of a pool are."""

    nearest: Tensor
    """(C, W) int64: the classes with the nearest means of each class, the nearest first; `NO_CLASS` behind the last."""
    hardest: Tensor
    """float32 scalar: mean over the pool of a sample's largest cosine to a sample of another class."""


def pool_of(labels: Tensor, count: int, seed: int, step: int) -> Tensor:
    """Indices (M,) int64 of the pool at a step: at most `count` of the samples with `labels` (N,) int64, as many of
    each class as possible."""
    return even_order(labels, generator(seed, NAME, "pool", step))[:count]


def confusion(vectors: Tensor, labels: Tensor, classes: int, width: int) -> Confusion:
    """The `width` nearest classes of each of C `classes`, from floating vectors (M, D) of samples with `labels` (M,)
    int64 on the same device."""
    directions = F.normalize(vectors.float(), dim=-1)
    sums = directions.new_zeros(classes, directions.shape[1]).index_add_(0, labels, directions)
    means, absent = F.normalize(sums, dim=-1), labels.bincount(minlength=classes) == 0
    rows, own = [], torch.arange(classes, device=labels.device)
    for cosines, part in _cosines(means, own):
        cosines.masked_fill_(absent | absent[part].unsqueeze(1), -torch.inf)
        values, places = cosines.topk(width)
        rows.append(places.where(values.isfinite(), NO_CLASS))
    largest = torch.cat([cosines.amax(1) for cosines, _ in _cosines(directions, labels)])
    return Confusion(torch.cat(rows), largest.mean())


def _cosines(directions: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cosines (m, M) of a part of the rows to all, -inf between those of one label, and the labels (m,) of the
    part."""
    for rows, part in zip(
        *(torch.split(values, max(1, AT_ONCE // len(labels))) for values in (directions, labels)), strict=True
    ):
        yield (rows @ directions.mT).masked_fill_(part.unsqueeze(1) == labels, -torch.inf), part


class Chosen(NamedTuple):
    """The classes of a batch."""

    classes: list[int]
    from_pool: int
    """How many of them were chosen because they are near another one."""


class NearClasses:
    """Batches of `together` classes with `per_class` samples each, of samples with `labels` (N,) int64."""

    def __init__(self, labels: Tensor, together: int, per_class: int, neighbours: int | None, seed: int) -> None:
        self._members = members_of(labels)
        self._together, self._per_class, self._seed = together, per_class, seed
        self._neighbours = min(neighbours or together - 1, together - 1)
        self.classes = len(self._members)

    @property
    def width(self) -> int:
        """Nearest classes of each class that a batch may need."""
        return min(self._together, self.classes) - 1

    def classes_at(self, step: int, nearest: Tensor) -> Chosen:
        """The classes of the batch of a step, from the `nearest` (C, W) int64 of each class (see `Confusion`)."""
        found: dict[int, bool] = {}
        for anchor in self._anchors(step):
            found.setdefault(anchor, False)
            rest = [near for near in nearest[anchor].tolist() if near != NO_CLASS and near not in found]
            found |= dict.fromkeys(rest[: min(self._neighbours, self._together - len(found))], True)
            if len(found) == self._together:
                break
        if len(found) < self._together:
            others = torch.randperm(self.classes, generator=generator(self._seed, NAME, "others", step)).tolist()
            rest = [other for other in others if other not in found]
            found |= dict.fromkeys(rest[: self._together - len(found)], False)
        return Chosen(list(found), sum(found.values()))

    def samples_of(self, step: int, classes: list[int], size: int) -> Tensor:
        """Indices (size,) int64 of the samples of these classes in the batch of a step."""
        random = generator(self._seed, NAME, "samples", step)
        return torch.cat([sample_class(self._members[each], self._per_class, random) for each in classes])[:size]

    def _anchors(self, step: int) -> list[int]:
        """The anchor classes of a step. All classes take turns, in a random order that is drawn anew for each turn."""
        count = -(-self._together // (1 + self._neighbours))
        return [self._anchor(step * count + place) for place in range(count)]

    def _anchor(self, place: int) -> int:
        turn, within = divmod(place, self.classes)
        return int(torch.randperm(self.classes, generator=generator(self._seed, NAME, "anchors", turn))[within])
