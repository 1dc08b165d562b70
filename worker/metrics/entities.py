"""Metrics of named entities: predicted spans of words and their types.

C tags, by number and name; N sentences with n words in all. A tag is a prefix and a type, such as `B-PER`. Sequences of
tags are converted to spans as in the library `seqeval` in its default mode, which also accepts sequences that break the
rules: `I-` begins a span if none of its type is open, and a change of type ends one. Whether a span begins or ends
between two words depends on their pair of tags alone, so a table of pairs is computed once from the names, and used for
all sentences together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

OUTSIDE = "O"
"""Tag of a word outside all spans."""
_ENTITY = re.compile(r"[BIES]-.+", re.S)
_SILENT = (OUTSIDE, ".")
"""Prefixes of tags outside all spans."""


class EntityScores(NamedTuple):
    """Scores for the spans of one type, or of all; shares are 0 if their divisor is 0."""

    precision: float
    """Share of the predicted spans that are right: first word, last word and type."""
    recall: float
    """Share of the true spans that were predicted."""
    f1: float
    """Harmonic mean of both."""
    support: int
    """True spans."""


def marks_entities(names: Sequence[str]) -> bool:
    """Whether these are tags of spans: `O`, and `B-`, `I-`, `E-` or `S-` before a type; and not tags of words, such as
    parts of speech."""
    marks = [name for name in names if name != OUTSIDE]
    return bool(marks) and all(_ENTITY.fullmatch(name) for name in marks)


class Spans(NamedTuple):
    """Spans of consecutive sentences, with an additional position after each sentence: P positions."""

    ends: Tensor
    """(P,) bool: whether a span ends before this position."""
    begins: Tensor
    """(P,) int64: the position where that span began."""
    kinds: Tensor
    """(P,) int64: the number of its type."""


class TagScheme:
    """Converts tags to spans, by the names of the tags."""

    def __init__(self, names: Sequence[str]) -> None:
        """Tags are numbered as in `names`."""
        marks = [*map(_parted, names), (OUTSIDE, "_"), (OUTSIDE, "")]
        self._outside, self._first = len(names), len(names) + 1
        self.types = sorted({kind for _, kind in marks})
        """Names of all types, by number."""
        number = {kind: index for index, kind in enumerate(self.types)}
        self._kinds = torch.tensor([number[kind] for _, kind in marks])
        self._ends = torch.tensor([[_ends(before, after) for after in marks] for before in marks])
        self._begins = torch.tensor([[_begins(before, after) for after in marks] for before in marks])

    def spans(self, tags: Tensor, lengths: Tensor) -> Spans:
        """Spans of tags (n,) int64, of sentences with `lengths` (N,) int64 words."""
        after = self._separated(tags, lengths)
        before = torch.cat((after.new_tensor([self._first]), after[:-1]))
        places = torch.arange(len(after))
        starts = torch.where(self._begins[before, after], places, 0).cummax(0).values
        begins = torch.cat((starts.new_zeros(1), starts[:-1]))  # a span that begins here is not the one that ended here
        return Spans(self._ends[before, after], begins, self._kinds[before])

    def _separated(self, tags: Tensor, lengths: Tensor) -> Tensor:
        """The tags with an outside tag after each sentence."""
        places = torch.arange(len(tags)) + torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        return tags.new_full((len(tags) + len(lengths),), self._outside).index_copy(0, places, tags)


def _parted(name: str) -> tuple[str, str]:
    """Prefix and type of a tag."""
    return name[:1], name[1:].split("-", maxsplit=1)[-1] or "_"


def _ends(before: tuple[str, str], after: tuple[str, str]) -> bool:
    """Whether a span that reaches the first of two words ends there."""
    closed = before[0] in ("E", "S") or (before[0] in ("B", "I") and after[0] in ("B", "S", OUTSIDE))
    return closed or (before[0] not in _SILENT and before[1] != after[1])


def _begins(before: tuple[str, str], after: tuple[str, str]) -> bool:
    """Whether a span begins with the second of two words."""
    opened = after[0] in ("B", "S") or (after[0] in ("E", "I") and before[0] in ("E", "S", OUTSIDE))
    return opened or (after[0] not in _SILENT and before[1] != after[1])


def entity_scores(
    predicted: Tensor, tags: Tensor, lengths: Tensor, names: Sequence[str]
) -> tuple[EntityScores, dict[str, EntityScores]]:
    """Scores for all spans together (micro average), and for each type that is true or predicted, in the order of their
    names; from `predicted` and true `tags` (n,) int64 of sentences with `lengths` (N,) int64 words, all on the CPU."""
    scheme = TagScheme(names)
    found, true = scheme.spans(predicted, lengths), scheme.spans(tags, lengths)
    right = found.ends & true.ends & (found.begins == true.begins) & (found.kinds == true.kinds)
    counts = [_by_type(scheme, true.kinds[where]) for where in (right, true.ends)]
    counts.insert(1, _by_type(scheme, found.kinds[found.ends]))
    by_type = dict(zip(scheme.types, zip(*counts, strict=True), strict=True))
    total = _scores(*(sum(column) for column in counts))
    return total, {kind: _scores(*row) for kind, row in by_type.items() if row[1] or row[2]}


def _by_type(scheme: TagScheme, kinds: Tensor) -> list[int]:
    counts: list[int] = torch.bincount(kinds, minlength=len(scheme.types)).tolist()
    return counts


def _scores(right: int, predicted: int, true: int) -> EntityScores:
    precision, recall = right / max(predicted, 1), right / max(true, 1)
    return EntityScores(precision, recall, 2 * right / max(predicted + true, 1), true)
