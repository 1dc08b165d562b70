"""Whether answers would be right if they were given in another order: the sign of two lists that were mixed up.

N samples, C classes or places. An order is found on every second sample and held against the others, so that chance
does not pass for one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

Moved = dict[int, int]
"""For each class or place that is out of its place, where its answers are found."""


def moved_classes(choices: Tensor, labels: Tensor) -> Moved:
    """Classes that most samples of another class are taken for, and which swap places that way; empty: none do.

    Both are (N,) int64 on the CPU. A class belongs to it if its samples are answered with the other class, whose own
    samples are answered with yet another one, or are not there.
    """
    order = labels.argsort(stable=True)  # so that each class is divided evenly
    fitted, held = order[::2], order[1::2]
    partners = _assign(_confusion(choices[fitted], labels[fitted]), largest=True)
    moved = _closed(partners, set(labels.tolist()))
    hits, plain, tested = permuted_hits(choices[held], labels[held], moved)
    explains = 2 * hits > tested and hits > 2 * plain and hits - plain > 2 * math.sqrt(tested)
    return moved if explains else {}


def permuted_hits(choices: Tensor, labels: Tensor, moved: Mapping[int, int]) -> tuple[int, int, int]:
    """Counts of the samples of moved classes, from choices and labels (N,) int64: those that are right once the order
    is mended, those that are right as it is, and all of them."""
    expected = torch.tensor([moved.get(label, -1) for label in labels.tolist()], dtype=torch.int64)
    concerned = expected >= 0
    return int((choices == expected).sum()), int((choices == labels)[concerned].sum()), int(concerned.sum())


def moved_places(outputs: Tensor, targets: Tensor, width: int = 1) -> Moved:
    """The same of numbers (N, T): places, `width` numbers each, whose answers lie in other places.

    It shows in less than a quarter of the squared error, which is less than that of the mean, too.
    """
    if len(outputs) < 4:
        return {}
    order = torch.randperm(len(outputs), generator=torch.Generator().manual_seed(0))
    given, wanted = outputs.double()[order], targets.double()[order]
    moved = _closed(_assign(_errors(given[::2], wanted[::2], width), largest=False), None)
    errors, own = _errors(given[1::2], wanted[1::2], width), list(moved)
    mended, plain = errors[own, list(moved.values())].sum(), errors[own, own].sum()
    mean = wanted[1::2].mean(0, keepdim=True).expand_as(wanted[1::2])
    spread = _errors(mean, wanted[1::2], width)[own, own].sum()
    return moved if mended < 0.25 * plain and mended < spread else {}


def _confusion(choices: Tensor, labels: Tensor) -> dict[tuple[int, int], float]:
    """Samples by label and choice, as far as there are any."""
    return {pair: float(count) for pair, count in Counter(zip(labels.tolist(), choices.tolist(), strict=True)).items()}


def _errors(outputs: Tensor, targets: Tensor, width: int) -> Tensor:
    """Mean squared distance (C, C) of each place of the targets (first axis) to each of the outputs, in units of the
    target's variance."""
    given, wanted = (each.reshape(len(each), -1, width) for each in (outputs, targets))
    squares = wanted.square().sum(2).mean(0).unsqueeze(1) + given.square().sum(2).mean(0).unsqueeze(0)
    distances = squares - 2 * torch.einsum("nid,njd->ij", wanted, given) / len(outputs)
    variance = wanted.var(0, correction=0).sum(1).clamp(min=1e-12)
    errors: Tensor = distances / variance.unsqueeze(1)
    return errors


def _assign(scores: Mapping[tuple[int, int], float] | Tensor, *, largest: bool) -> Moved:
    """A partner for each row, the best pairs first: the best of all assignments where each row's best is its own."""
    if isinstance(scores, Tensor):
        rows = range(len(scores))
        scores = {(row, column): float(scores[row, column]) for row in rows for column in rows}
    order = sorted(scores, key=lambda pair: (-scores[pair] if largest else scores[pair], pair))
    found: Moved = {}
    taken: set[int] = set()
    for row, column in order:
        if row not in found and column not in taken:
            found[row] = column
            taken.add(column)
    return found


def _closed(partners: Moved, there: set[int] | None) -> Moved:
    """What changes places among itself: a class that is taken for one which stays where it is, is just not known.

    `there` are the classes that have samples; none: all have.
    """
    moved = {own: other for own, other in partners.items() if own != other}
    while True:
        kept = {own: other for own, other in moved.items() if other in moved or (there and other not in there)}
        if len(kept) == len(moved):
            return kept
        moved = kept
