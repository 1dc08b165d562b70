"""Detects permuted outputs: predictions that would be right in another order, as when two lists were mixed up.

N samples, C classes or positions. A permutation is found on every second sample and tested on the others, so that it is
not due to chance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

Moved = dict[int, int]
"""For each permuted class or position, the one where its outputs are."""


def moved_classes(choices: Tensor, labels: Tensor) -> Moved:
    """Classes that are permuted: most samples of each are predicted as another class; empty if there are none.

    Both are (N,) int64 on the CPU. A class is permuted if its samples are predicted as another class, whose samples are
    predicted as yet another one, or do not exist.
    """
    order = labels.argsort(stable=True)  # divides each class evenly
    fitted, held = order[::2], order[1::2]
    partners = _assign(_confusion(choices[fitted], labels[fitted]), largest=True)
    moved = _closed(partners, set(labels.tolist()))
    hits, plain, tested = permuted_hits(choices[held], labels[held], moved)
    explains = 2 * hits > tested and hits > 2 * plain and hits - plain > 2 * math.sqrt(tested)
    return moved if explains else {}


def permuted_hits(choices: Tensor, labels: Tensor, moved: Mapping[int, int]) -> tuple[int, int, int]:
    """Counts of the samples of permuted classes, from choices and labels (N,) int64: those right after the permutation
    is undone, those right without, and all of them."""
    expected = torch.tensor([moved.get(label, -1) for label in labels.tolist()], dtype=torch.int64)
    affected = expected >= 0
    return int((choices == expected).sum()), int((choices == labels)[affected].sum()), int(affected.sum())


def moved_places(outputs: Tensor, targets: Tensor, width: int = 1) -> Moved:
    """Positions of numbers (N, T), floating, with `width` numbers each, whose outputs are at other positions.

    They are permuted if undoing it leaves less than a quarter of the squared error, and less than the mean's error.
    """
    if len(outputs) < 4:
        return {}
    order = torch.randperm(len(outputs), generator=torch.Generator().manual_seed(0))
    predictions, truth = outputs.double()[order], targets.double()[order]
    moved = _closed(_assign(_errors(predictions[::2], truth[::2], width), largest=False), None)
    errors, positions = _errors(predictions[1::2], truth[1::2], width), list(moved)
    corrected, plain = errors[positions, list(moved.values())].sum(), errors[positions, positions].sum()
    mean = truth[1::2].mean(0, keepdim=True).expand_as(truth[1::2])
    spread = _errors(mean, truth[1::2], width)[positions, positions].sum()
    return moved if corrected < 0.25 * plain and corrected < spread else {}


def _confusion(choices: Tensor, labels: Tensor) -> dict[tuple[int, int], float]:
    """Number of samples by label and choice, without zeros."""
    return {pair: float(count) for pair, count in Counter(zip(labels.tolist(), choices.tolist(), strict=True)).items()}


def _errors(outputs: Tensor, targets: Tensor, width: int) -> Tensor:
    """Mean squared distance (C, C) of each position of the targets (first axis) to each of the outputs, in units of the
    target's variance."""
    predictions, truth = (each.reshape(len(each), -1, width) for each in (outputs, targets))
    squares = truth.square().sum(2).mean(0).unsqueeze(1) + predictions.square().sum(2).mean(0).unsqueeze(0)
    distances = squares - 2 * torch.einsum("nid,njd->ij", truth, predictions) / len(outputs)
    variance = truth.var(0, correction=0).sum(1).clamp(min=1e-12)
    errors: Tensor = distances / variance.unsqueeze(1)
    return errors


def _assign(scores: Mapping[tuple[int, int], float] | Tensor, *, largest: bool) -> Moved:
    """A partner for each row, the best pairs first: the best assignment if no two rows have the same best column."""
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


def _closed(partners: Moved, present: set[int] | None) -> Moved:
    """The permutation without classes that are predicted as an unpermuted one, which are only predicted wrongly.

    `present` are the classes with samples; none: all have samples.
    """
    moved = {own: other for own, other in partners.items() if own != other}
    while True:
        kept = {own: other for own, other in moved.items() if other in moved or (present and other not in present)}
        if len(kept) == len(moved):
            return kept
        moved = kept
