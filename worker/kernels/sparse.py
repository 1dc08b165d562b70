"""A teacher of which only the likeliest classes are known, as caches and servers keep them: no product is made for it.

Letters: N rows, n of them in a chunk, K classes kept of each, V the student's vocabulary, W the teacher's. p is the
teacher's softmax, q the student's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.kernels.linear import Picked, part, pick
from worker.kernels.processor_rows import covers
from worker.kernels.rows import row_loss_, runs_on_triton, weighted
from worker.kernels.spec import RowSpec
from worker.losses.base import at_least_float32

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
    * `zero`: nothing, while p of the kept ones stays what it is with `even`: for forward KL without softcap, scale and
      smoothing alone, since p isn't a distribution then;
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
        self, student: Tensor, rows: Picked, labels: Tensor | None, spec: RowSpec, scale: Tensor, gradient: bool
    ) -> Tensor:
        """See `Teacher`."""
        if self._tail == "zero" and not covers(spec):
            raise ValueError("tail zero is for forward-kl without softcap, logit_scale and label_smoothing")
        compute = self._by_sums if covers(spec) else self._filled_in
        kept = self._kept.rows(rows)
        if covers(spec) and runs_on_triton(student):
            return self._by_kernel(student, kept, labels, spec, scale, gradient)
        return torch.cat(
            [
                compute(student[block], kept.rows(block), part(labels, block), spec, scale, gradient)
                for block in blocks(student)
            ],
            dim=1,
        )

    def _filled_in(
        self, student: Tensor, kept: Kept, labels: Tensor | None, spec: RowSpec, scale: Tensor, gradient: bool
    ) -> Tensor:
        """By logits of the whole vocabulary."""
        logits = (
            self._other(kept)
            .repeat(1, self._vocabulary)
            .scatter_(1, kept.indices.long(), at_least_float32(kept.values))
        )
        weights = scale.expand(student.shape[0])
        return torch.stack(row_loss_(student, logits, labels, spec, row_weights=weights, gradient=gradient))

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
        raw = raw - raw.amax(1, keepdim=True)
        once, soft = F.log_softmax(raw, dim=-1), F.log_softmax(raw / temperature, dim=-1)
        against = Against(self._known(kept, temperature), soft, min(self._vocabulary, raw.shape[1]))
        cross_entropy = -once.gather(1, target) if spec.ce_weight else torch.zeros_like(weights)
        divergence = temperature**2 * against.divergence()
        total = weights * (spec.divergence_weight * divergence + spec.ce_weight * cross_entropy)
        if gradient:
            slope = against.slope_().mul_(spec.divergence_weight * temperature * weights)
            slope.add_(once.exp_().scatter_add_(1, target, -torch.ones_like(weights)).mul_(spec.ce_weight * weights))
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
    """What is known of the teacher against log q (n, V), of which the first `shared` columns are the teacher's too."""

    def __init__(self, known: Known, logs: Tensor, shared: int) -> None:
        self._logs, self._shared = logs, shared
        self._masked = logs[:, :shared].isneginf()
        self._columns = known.columns.clamp(max=shared - 1)
        inside = (known.columns < shared) & ~self._masked.gather(1, self._columns)
        self._p, self._other = known.logs.exp().where(inside, 0.0), known.other.exp()
        self._log_p, self._log_q = known.logs.where(inside, 0.0), logs.gather(1, self._columns).where(inside, 0.0)
        self._log_other = known.other.where(self._other > 0.0, 0.0)
        self._others = shared - self._masked.sum(1, keepdim=True) - inside.sum(1, keepdim=True)
        self._inside = inside

    def divergence(self) -> Tensor:
        """Sum of p (log p - log q) (n, 1) over the columns that both have."""
        of_others = self._logs[:, : self._shared].masked_fill(self._masked, 0.0).sum(1, keepdim=True)
        of_others = of_others - self._log_q.sum(1, keepdim=True)
        at_kept = (self._p * (self._log_p.where(self._p > 0.0, 0.0) - self._log_q)).sum(1, keepdim=True)
        return at_kept + self._other * (self._others * self._log_other - of_others)

    def slope_(self) -> Tensor:
        """Its gradient (n, V) by the student's logits at the temperature, where log q was."""
        mass = self._p.sum(1, keepdim=True) + self._other * self._others
        slope = self._logs.exp_().mul_(mass)
        slope[:, : self._shared] -= self._other.where(~self._masked, 0.0)
        return slope.scatter_add_(1, self._columns, (self._other - self._p).where(self._inside, 0.0))


def blocks(logits: Tensor) -> Iterator[slice]:
    """Ranges of the rows (n, V) to work on one after the other."""
    size = max(1, BLOCKS.get(logits.device.type, BLOCK) // logits.shape[1])
    return (slice(begin, begin + size) for begin in range(0, logits.shape[0], size))
