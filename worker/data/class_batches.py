"""Orders of samples by class: in every batch several samples of each of its classes (P classes x K samples), or no two
of one."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from app.recipe.job import Recipe
from worker.data.batches import Batch, Order
from worker.errors import UserError


def order_of(recipe: Recipe, samples: Batch) -> Order | None:
    """The order of a recipe with `samples_per_class`; none: a random one. Raises UserError (`invalid_job`) if the
    samples have too few classes for a batch."""
    per_class = recipe.samples_per_class
    if per_class is None:
        return None
    labels = samples.targets.cpu()
    require_classes(labels, recipe.batch_size // per_class, per_class)
    return lambda random: grouped_order(labels, recipe.batch_size, per_class, random)


def require_classes(labels: Tensor, together: int, per_class: int) -> None:
    """Raise UserError (`invalid_job`) if `labels` (N,) int64 have fewer classes than a batch has `together`."""
    if (classes := int(labels.max()) + 1) < together:
        found = f"with {per_class} samples of each a batch has {together} classes, and {classes} are trained on"
        accepted = f"at most {classes} classes: recipe.batch_size up to {classes * per_class}"
        raise UserError("invalid_job", f"{found}; accepted: {accepted}", "recipe.samples_per_class")


def grouped_order(labels: Tensor, batch: int, per_class: int, random: torch.Generator) -> Tensor:
    """Indices (N,) int64 into `labels` (N,) int64 for an epoch: in each `batch` of them, different classes with
    `per_class` samples each.

    Classes take turns in a random order, and so do the samples of a class, so that classes are equally frequent. A
    class with fewer samples repeats them. If N is no multiple of `batch`, the last batch has fewer classes, and one of
    them perhaps fewer samples.
    """
    groups = [_groups(members, per_class, random) for members in members_of(labels) if len(members)]
    together = batch // per_class
    classes = _turns(len(groups), together, random)
    found, left = [], len(labels)
    while left > 0:
        found.append(next(groups[next(classes)]))
        left -= per_class
    return torch.cat(found)[: len(labels)]


def members_of(labels: Tensor) -> tuple[Tensor, ...]:
    """Indices (n,) int64 of the samples of each class, by the numbers of the classes, for `labels` (N,) int64."""
    places = labels.cpu()
    by_class: tuple[Tensor, ...] = torch.split(places.argsort(stable=True), places.bincount().tolist())
    return by_class


def even_order(labels: Tensor, random: torch.Generator) -> Tensor:
    """Indices (N,) int64 of all samples in a random order whose beginnings have as equal numbers of samples of each
    class of `labels` (N,) int64 as possible."""
    shuffled = torch.randperm(len(labels), generator=random)
    return shuffled[_ranks(labels.cpu()[shuffled]).argsort(stable=True)]


def rank_order(labels: Tensor) -> Tensor:
    """Indices (N,) int64 that sort `labels` (N,) int64 by the rank of each sample within its class, and then by
    class: the first of every class, the second of every class, ..."""
    by_class = labels.argsort(stable=True)
    return by_class[_ranks(labels)[by_class].argsort(stable=True)]


def _ranks(labels: Tensor) -> Tensor:
    """Number (N,) int64 of each sample among those of its class."""
    by_class, sizes = labels.argsort(stable=True), labels.bincount()
    ranks = torch.empty_like(labels)
    ranks[by_class] = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[by_class]]
    return ranks


def distinct_order(labels: Tensor, batch: int, random: torch.Generator) -> Tensor:
    """Indices (N,) int64 of all samples for an epoch: in each `batch` of them no two of one class of `labels` (N,)
    int64, unless fewer classes than the batch has places have samples left. Of each class the order is random, and
    so is that of classes."""
    shuffled = torch.randperm(len(labels), generator=random)
    names = labels.cpu()[shuffled]
    order, by_number = _ranks(names).argsort(stable=True).tolist(), names.tolist()
    left, waiting, found = Counter(by_number), deque[int](order), list[int]()
    while waiting:
        taken, skipped = dict[int, int](), list[int]()
        while len(taken) < min(batch, len(left)):
            sample = waiting.popleft()
            if taken.setdefault(by_number[sample], sample) != sample:
                skipped.append(sample)
        again = [*skipped, *islice(waiting, max(0, batch - len(taken) - len(skipped)))][: batch - len(taken)]
        for _ in range(len(again) - len(skipped)):
            waiting.popleft()
        waiting.extendleft(reversed(skipped[len(again) :]))
        for sample in (*taken.values(), *again):
            left[by_number[sample]] -= 1
            if not left[by_number[sample]]:
                del left[by_number[sample]]
            found.append(sample)
    return shuffled[torch.tensor(found)]


def repeated_share(labels: Tensor, order: Tensor, batch: int) -> float:
    """Share of the samples in the batches of an `order` (N,) int64 that have the class, of `labels` (N,) int64, of an
    earlier sample of their batch."""
    parts: tuple[Tensor, ...] = torch.split(labels.cpu()[order], batch)
    return sum(len(part) - len(torch.unique(part)) for part in parts) / len(order)


def _turns(classes: int, together: int, random: torch.Generator) -> Iterator[int]:
    """Numbers of classes without end, each as often as any other; any `together` of a batch differ."""
    waiting: list[int] = []
    while True:
        if len(waiting) < together:
            fresh = torch.randperm(classes, generator=random).tolist()
            early = together - len(waiting)
            new = [number for number in fresh if number not in waiting]
            waiting += new[:early] + _shuffled(new[early:] + waiting, random)
        yield from waiting[:together]
        waiting = waiting[together:]


def _shuffled(numbers: list[int], random: torch.Generator) -> list[int]:
    return [numbers[place] for place in torch.randperm(len(numbers), generator=random).tolist()]


def _groups(members: Tensor, size: int, random: torch.Generator) -> Iterator[Tensor]:
    """Groups of `size` of these members without end; all of one are different if there are as many."""
    while True:
        drawn = _drawn(members, size, random)
        yield from (drawn[first : first + size] for first in range(0, len(drawn) - size + 1, size))


def sample_class(members: Tensor, size: int, random: torch.Generator) -> Tensor:
    """`size` of the members (n,) int64 of a class at random; all are different if there are as many."""
    return _drawn(members, size, random)[:size]


def _drawn(members: Tensor, least: int, random: torch.Generator) -> Tensor:
    """All members in a random order, as many times as make up `least` of them."""
    copies = -(-least // len(members))
    return torch.cat([members[torch.randperm(len(members), generator=random)] for _ in range(copies)])
