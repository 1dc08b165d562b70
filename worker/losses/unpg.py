"""UNPG (2203.11593): a softmax whose negatives are class weights and the pairs of the batch.

Pairs are computed some rows at a time, and again for their quartiles and for the gradient, so that memory is linear in
the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses.class_vectors import Unpg
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.class_vectors import EPS, class_vectors, cosines_with, with_margin
from worker.selection import ranked
from worker.tensors import at_least_float32

AT_ONCE = 2**18
"""Cosines of pairs that are computed at a time."""


class UnpgTerm:
    """The loss of each row, which has the pairs of the whole batch as negatives. Ignored rows are in no pair."""

    def __init__(self, spec: Unpg, builder: LossBuilder) -> None:
        self.spec, self.vectors = spec, class_vectors(spec, builder)

    def __call__(self, inputs: LossInputs) -> Tensor:
        spec, vectors, labels = self.spec, at_least_float32(inputs.student), inputs.labels
        found = cosines_with(vectors, self.vectors.weight)
        logits = spec.scale * with_margin(found, labels, spec.margin, spec.used_margin)
        own, mass = logits.gather(1, labels.unsqueeze(1)).squeeze(1), logits.logsumexp(1)
        valid = torch.ones_like(labels, dtype=torch.bool) if inputs.valid is None else inputs.valid
        if count := count_of_pairs(labels, valid):
            directions = F.normalize(vectors, dim=-1, eps=EPS)
            pairs: Tensor = _MassOfPairs.apply(directions, labels, valid, count, spec)  # type: ignore[no-untyped-call]
            mass = torch.logaddexp(mass, pairs)
        return mass - own


class PairPart(NamedTuple):
    """Pairs of the rows from `first` on, r of them, with those and all rows after them, m."""

    first: int
    cosines: Tensor
    """(r, m), floating."""
    counted: Tensor
    """(r, m) bool: pairs of valid rows of different classes, each once."""


class Whiskers(NamedTuple):
    """Limits of what is no outlier, floating scalars."""

    low: Tensor
    high: Tensor
    third_quartile: Tensor

    def hold(self, values: Tensor) -> Tensor:
        """Which of floating `values`, of any shape, are within them, bool."""
        return (values >= self.low) & (values <= self.high)


def count_of_pairs(labels: Tensor, valid: Tensor) -> int:
    """Pairs of different classes among rows with `labels` (B,) int64 that are `valid` (B,) bool."""
    sizes = labels[valid].bincount()
    return int(sizes.sum().square() - sizes.square().sum()) // 2


def pair_parts(directions: Tensor, labels: Tensor, valid: Tensor) -> Iterator[PairPart]:
    """All pairs of unit vectors (B, D), floating, with `labels` (B,) int64 and `valid` (B,) bool."""
    rows = max(1, AT_ONCE // len(labels))
    for first in range(0, len(labels), rows):
        part = slice(first, first + rows)
        different = (labels[part].unsqueeze(1) != labels[first:]) & valid[part].unsqueeze(1) & valid[first:]
        yield PairPart(first, directions[part] @ directions[first:].mT, different.triu(1))


def whiskers_of(directions: Tensor, labels: Tensor, valid: Tensor, count: int, factor: float) -> Whiskers:
    """Of the cosines of `count` > 0 pairs of floating (B, D), see `pair_parts`; quartiles at rounded-down places."""
    places = torch.tensor([count // 4, 3 * count // 4], device=labels.device)
    values = lambda: (part.cosines[part.counted] for part in pair_parts(directions, labels, valid))  # noqa: E731
    low, high = ranked(values, places, directions.dtype)
    reach = factor * (high - low)
    return Whiskers(low - reach, high + reach, high)


class _MassOfPairs(torch.autograd.Function):
    """log sum exp(s n), a floating scalar, over the cosines n of pairs within the whiskers, from unit vectors (B, D).

    The gradient is computed with the value; both are rescaled whenever the largest exponent so far grows.
    """

    @staticmethod
    def forward(ctx: Any, directions: Tensor, labels: Tensor, valid: Tensor, count: int, spec: Unpg) -> Tensor:
        whiskers = whiskers_of(directions, labels, valid, count, spec.whiskers)
        gradient, total = torch.zeros_like(directions), directions.new_zeros((), dtype=torch.float64)
        largest = spec.scale * whiskers.third_quartile
        for first, cosines, counted in pair_parts(directions, labels, valid):
            exponents = (spec.scale * cosines).masked_fill_(~(counted & whiskers.hold(cosines)), -torch.inf)
            before, largest = largest, torch.maximum(largest, exponents.max())
            shares = exponents.sub_(largest).exp_()
            total = total * (before - largest).exp() + shares.sum(dtype=torch.float64)
            gradient *= (before - largest).exp()
            gradient[first : first + len(shares)] += shares @ directions[first:]
            gradient[first:] += shares.mT @ directions[first : first + len(shares)]
        ctx.save_for_backward(gradient * (spec.scale / total).to(gradient.dtype))
        return largest + total.log().to(largest.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        return upstream * ctx.saved_tensors[0], None, None, None, None
