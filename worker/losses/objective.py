"""The objective: the weighted sum of a recipe's terms, divided in one place by the count of valid rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from app.recipe.losses import LossTerm
from worker.losses import build_term
from worker.losses.base import IGNORED, Rows, Term

TOTAL = "loss"


class _Weighted(NamedTuple):
    weight: float
    term: Term


class Objective:
    """Named terms and their weighted sum.

    A batch may come in parts: each call gives its part's share of the batch's mean, because it divides by the count of
    the whole batch. So the shares of all parts add up to the loss of the batch, and so do their gradients.
    """

    def __init__(self, specs: Sequence[LossTerm]) -> None:
        names = unique_names([getattr(spec, "kind") for spec in specs])  # noqa: B009  # every member of the union has it
        self._terms = {name: _Weighted(spec.weight, build_term(spec)) for name, spec in zip(names, specs, strict=True)}

    def count(self, labels: Tensor) -> Tensor:
        """Rows of a whole batch that count; at least 1, so that a batch of ignored rows gives 0 and not NaN."""
        return _valid(labels).sum().clamp(min=1)

    def __call__(
        self, logits: Tensor, labels: Tensor, teacher: Tensor | None, count: Tensor, head: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Share of a part (B rows) of a batch with `count` valid rows: `loss`, and `loss/<kind>` before its weight.

        `teacher`: its logits (B, C); `head`: the weight (C, D) of its last layer, for the terms that look at it.
        """
        valid = _valid(labels)
        rows = Rows(logits, labels if labels.ndim == 2 else labels.where(valid, 0), teacher, valid, head)
        values = {}
        total = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
        for name, (weight, term) in self._terms.items():
            value = term(rows).where(valid, 0).sum() / count
            values[f"{TOTAL}/{name}"] = value
            total = total + weight * value
        return {TOTAL: total, **values}


def unique_names(kinds: Sequence[str]) -> list[str]:
    """Each kind's name; kinds that appear several times are numbered: kd-1, kd-2."""
    totals, seen = Counter(kinds), Counter[str]()
    names = []
    for kind in kinds:
        seen[kind] += 1
        names.append(f"{kind}-{seen[kind]}" if totals[kind] > 1 else kind)
    return names


def _valid(labels: Tensor) -> Tensor:
    return labels != IGNORED if labels.ndim == 1 else torch.ones(len(labels), dtype=torch.bool, device=labels.device)
