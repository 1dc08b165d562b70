"""A teacher of which only the likeliest classes are known, as caches and servers keep them: no product is made for it.

Letters: N rows, n of them in a chunk, K classes kept of each, V the student's vocabulary, W the teacher's. p is the
teacher's softmax, q the student's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from worker.kernels.linear import Picked, part, pick
from worker.kernels.processor_rows import covers, softmax
from worker.kernels.rows import row_loss_, runs_on_triton, weighted
from worker.kernels.spec import RowSpec
from worker.tensors import at_least_float32

Tail = Literal["even", "zero", "renormalise"]
BLOCKS = {"cpu": 1 << 20}
"""Logits to work on at a time, by kind of device: what a cache holds, ..."""
BLOCK = 1 << 26
"""... or what keeps a GPU busy."""


class Kept(NamedTuple):
    """What is known of some rows."""

    indices: Tensor
    """(n, K) integers, different ones in each row."""
    values: Tensor
    """Logits (n, K)."""
    rest: Tensor | None
    """Logarithm of the sum of the exponentials of all other logits (n, 1); -inf: none; None: not known."""

    def rows(self, rows: Picked) -> Kept:
        """The same of some of them."""
        return Kept(pick(self.indices, rows), pick(self.values, rows), part(self.rest, rows))


class Known(NamedTuple):
    """The teacher's softmax of some rows, at a temperature."""

    columns: Tensor
    """(n, K) int64."""
    logs: Tensor
    """log p of the kept columns (n, K)."""
    other: Tensor
    """log p of any other column (n, 1)."""
    others: bool
    """Whether the other columns have a share in any row."""


class TopKTeacher:
    """The largest logits of each row.

    `tail` says what the classes that aren't kept get:

    * `even`: equal parts of their mass, which makes p of the kept ones exact at temperature 1;
    * `zero`: nothing, while p of the kept ones stays what it is with `even`: for forward KL without softcap, scale,
      smoothing and class weights alone, since p isn't a distribution then;
    * `renormalise`: nothing, and p of the kept ones is brought to a sum of 1.

    Forward KL costs no memory of the teacher's vocabulary, as what the other columns say is a sum over the student's;
    for other divergences a few rows at a time are filled in. Raises ValueError when `rest` is missing and needed.
    """

    bytes_per_row = 0

    def __init__(self, kept: Kept, vocabulary: int, tail: Tail = "even") -> None:
        if kept.rest is None and tail != "renormalise":
            raise ValueError(f"tail {tail} needs to know the mass of the rest; accepted without it: renormalise")
        self._kept, self._vocabulary, self._tail = Kept(*kept), vocabulary, tail

    def losses(
        self,
        student: Tensor,
        rows: Picked,
        labels: Tensor | None,
        spec: RowSpec,
        scale: Tensor,
        gradient: bool,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """See `Teacher`."""
        covered, kept = covers(spec) and class_weights is None, self._kept.rows(rows)
        if self._tail == "zero" and not covered:
            raise ValueError("tail zero is for forward-kl without softcap, logit_scale, smoothing and class weights")
        compute = self._by_sums if covered else partial(self._filled_in, class_weights)
        if covered and runs_on_triton(student):
            return self._by_kernel(student, kept, labels, spec, scale, gradient)
        return torch.cat(
            [
                compute(student[block], kept.rows(block), part(labels, block), spec, scale, gradient)
                for block in blocks(student)
            ],
            dim=1,
        )

    def _filled_in(
        self,
        class_weights: Tensor | None,
        student: Tensor,
        kept: Kept,
        labels: Tensor | None,
        spec: RowSpec,
        scale: Tensor,
        gradient: bool,
    ) -> Tensor:
        """By logits of the whole vocabulary."""
        logits = (
            self._other(kept)
            .repeat(1, self._vocabulary)
            .scatter_(1, kept.indices.long(), at_least_float32(kept.values))
        )
        weights = scale.expand(student.shape[0])
        given = row_loss_(
            student, logits, labels, spec, class_weights=class_weights, row_weights=weights, gradient=gradient
        )
        return torch.stack(given)

    def _by_kernel(
        self, student: Tensor, kept: Kept, labels: Tensor | None, spec: RowSpec, scale: Tensor, gradient: bool
    ) -> Tensor:
        """As `_by_sums`, in one launch."""
        from worker.kernels import sparse_kernels  # Triton is there on Linux alone

        assert spec.divergence is not None
        known, shared = self._known(kept, spec.divergence.temperature), min(self._vocabulary, student.shape[1])
        losses = sparse_kernels.launch(student, known, shared, labels, spec, scale, gradient)
        return torch.stack((weighted(*losses, spec, scale.expand(student.shape[0])), *losses))

    def _by_sums(
        self, student: Tensor, kept: Kept, labels: Tensor | None, spec: RowSpec, scale: Tensor, gradient: bool
    ) -> Tensor:
        """By sums over the student's vocabulary; `covers` says that it is forward KL, with or without cross-entropy."""
        assert spec.divergence is not None
        temperature, weights = spec.divergence.temperature, scale.expand(student.shape[0], 1)
        valid = (
            torch.ones_like(weights, dtype=torch.bool) if labels is None else labels.unsqueeze(1) != spec.ignore_index
        )
        target = torch.zeros_like(valid, dtype=torch.int64) if labels is None else labels.unsqueeze(1).where(valid, 0)
        raw = at_least_float32(student)
        soft = softmax(raw, temperature)
        once = soft if temperature == 1.0 or not spec.ce_weight else softmax(raw, 1.0)
        against = Against(self._known(kept, temperature), raw, soft.log_sum, temperature, self._vocabulary)
        cross_entropy = once.log_sum - raw.gather(1, target) if spec.ce_weight else torch.zeros_like(weights)
        divergence = temperature**2 * against.divergence()
        total = weights * (spec.divergence_weight * divergence + spec.ce_weight * cross_entropy)
        if gradient:
            given, hard = weights * (spec.divergence_weight * temperature), weights * spec.ce_weight
            slope = soft.values.mul_(given * against.mass + (hard if once is soft else 0.0))
            if once is not soft:
                slope.add_(once.values.mul_(hard))
            against.take_from_(slope, given)
            slope.scatter_add_(1, target, -hard)
            student.copy_(slope.masked_fill_(~valid, 0.0))
        return torch.cat((total, divergence, cross_entropy), dim=1).where(valid, 0.0).t()

    def _known(self, kept: Kept, temperature: float) -> Known:
        values, other = at_least_float32(kept.values) / temperature, self._other(kept) / temperature
        number = max(1, self._vocabulary - kept.indices.shape[1])
        total = torch.cat((values, other + math.log(number)), dim=1).logsumexp(1, keepdim=True)
        left = other.fill_(-torch.inf) if self._tail == "zero" else other - total
        return Known(kept.indices.long(), values - total, left, self._tail == "even")

    def _other(self, kept: Kept) -> Tensor:
        """Logit (n, 1) of each class that isn't kept."""
        if kept.rest is None or self._tail == "renormalise":
            return torch.full_like(at_least_float32(kept.values[:, :1]), -torch.inf)
        return at_least_float32(kept.rest) - math.log(max(1, self._vocabulary - kept.indices.shape[1]))


class Against:
    """What is known of the teacher against the student's logits (n, V), with their log-sums (n, 1)."""

    def __init__(self, known: Known, raw: Tensor, log_sum: Tensor, temperature: float, vocabulary: int) -> None:
        self._shared = min(vocabulary, raw.shape[1])
        self._columns = known.columns.clamp(max=self._shared - 1)
        log_q = raw.gather(1, self._columns) / temperature - log_sum
        self._inside = (known.columns < self._shared) & ~log_q.isneginf()
        self._p, self._log_p = known.logs.exp().where(self._inside, 0.0), known.logs
        self._log_q = log_q.where(self._inside, 0.0)
        self._others = Others(known, raw[:, : self._shared], log_sum, temperature) if known.others else None
        self.mass = self._p.sum(1, keepdim=True)
        """What the student's share of the teacher's probabilities adds up to (n, 1)."""
        if self._others is not None:
            self._others.leave_out(self._inside, self._log_q)
            self.mass = self.mass + self._others.mass

    def divergence(self) -> Tensor:
        """Sum of p (log p - log q) (n, 1) over the columns that both have."""
        at_kept = (self._p * (self._log_p.where(self._p > 0.0, 0.0) - self._log_q)).sum(1, keepdim=True)
        return at_kept if self._others is None else at_kept + self._others.divergence()

    def take_from_(self, slope: Tensor, factor: Tensor) -> None:
        """Subtract p times a factor (n, 1) from (n, V)."""
        each = torch.zeros_like(factor)
        if self._others is not None:
            each = factor * self._others.p
            self._others.take_from_(slope[:, : self._shared], each)
        slope.scatter_add_(1, self._columns, (each - factor * self._p).where(self._inside, 0.0))


class Others:
    """The columns that aren't kept, among those that both sides have (n, S)."""

    def __init__(self, known: Known, raw: Tensor, log_sum: Tensor, temperature: float) -> None:
        self._masked = raw.isneginf() if bool(raw.amin() == -torch.inf) else None
        self.p = known.other.exp()
        self._log_p = known.other.where(self.p > 0.0, 0.0)
        there, summed = torch.full_like(log_sum, raw.shape[1]), raw
        if self._masked is not None:
            there, summed = there - self._masked.sum(1, keepdim=True), raw.masked_fill(self._masked, 0.0)
        self._count = there
        self._sum = summed.sum(1, keepdim=True) / temperature - there * log_sum

    def leave_out(self, kept: Tensor, log_q: Tensor) -> None:
        """Those columns (n, K), with their log q."""
        self._count = self._count - kept.sum(1, keepdim=True)
        self._sum = self._sum - log_q.sum(1, keepdim=True)

    @property
    def mass(self) -> Tensor:
        """What they add up to (n, 1)."""
        return self.p * self._count

    def divergence(self) -> Tensor:
        """Their part of it (n, 1)."""
        return self.p * (self._count * self._log_p - self._sum)

    def take_from_(self, slope: Tensor, each: Tensor) -> None:
        """Subtract (n, 1) from every column (n, S) that isn't masked."""
        slope.sub_(each if self._masked is None else each.where(~self._masked, 0.0))


def blocks(logits: Tensor) -> Iterator[slice]:
    """Ranges of the rows (n, V) to work on one after the other."""
    size = max(1, BLOCKS.get(logits.device.type, BLOCK) // logits.shape[1])
    return (slice(begin, begin + size) for begin in range(0, logits.shape[0], size))
