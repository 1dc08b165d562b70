"""A teacher with the logits of the likeliest classes alone, as from caches and servers, without a forward pass.

Letters: N rows, n of them in a chunk, K classes of each, V the student's vocabulary, W the teacher's. p is the
teacher's softmax, q the student's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from worker.kernels.processor_rows import covers, softmax
from worker.kernels.rows import row_loss_, runs_on_triton, weighted
from worker.kernels.spec import RowSpec
from worker.kernels.top_k import TopK, TopKProbs
from worker.tensors import RowIndex, at_least_float32, take_rows_of_any

BLOCKS = {"cpu": 1 << 20}
"""Logits of a block, by kind of device: as many as fit a cache, ..."""
BLOCK = 1 << 26
"""... or as many as occupy a GPU."""


class TopKTeacher:
    """A teacher with the largest logits of each row.

    The other classes get equal parts of the remaining mass, so that p of the kept ones is exact at temperature 1.
    Forward KL needs no memory for the teacher's vocabulary, because the part of the other columns is a sum over the
    student's; for other divergences the logits of a few rows at a time are filled in.
    """

    bytes_per_row = 0

    def __init__(self, kept: TopK, vocabulary: int) -> None:
        self._kept, self._vocabulary = kept, vocabulary

    def losses(
        self,
        student: Tensor,
        rows: RowIndex,
        labels: Tensor | None,
        spec: RowSpec,
        scale: Tensor,
        gradient: bool,
    ) -> Tensor:
        """See `KernelTeacher`."""
        covered, kept = covers(spec), self._kept.rows(rows)
        compute = self._by_sums if covered else self._filled_in
        if covered and runs_on_triton(student):
            return self._by_kernel(student, kept, labels, spec, scale, gradient)
        return torch.cat(
            [
                compute(student[block], kept.rows(block), take_rows_of_any(labels, block), spec, scale, gradient)
                for block in blocks(student)
            ],
            dim=1,
        )

    def _filled_in(
        self,
        student: Tensor,
        kept: TopK,
        labels: Tensor | None,
        spec: RowSpec,
        scale: Tensor,
        gradient: bool,
    ) -> Tensor:
        """Losses from logits of the whole vocabulary."""
        logits = (
            self._other(kept)
            .repeat(1, self._vocabulary)
            .scatter_(1, kept.indices.long(), at_least_float32(kept.values))
        )
        weights = scale.expand(student.shape[0])
        return torch.stack(row_loss_(student, logits, labels, spec, row_weights=weights, gradient=gradient))

    def _by_kernel(
        self, student: Tensor, kept: TopK, labels: Tensor | None, spec: RowSpec, scale: Tensor, gradient: bool
    ) -> Tensor:
        """Losses as `_by_sums`, in one launch."""
        from worker.kernels import sparse_kernels  # Triton is available on Linux alone

        assert spec.divergence is not None
        known, shared = self._known(kept, spec.divergence.temperature), min(self._vocabulary, student.shape[1])
        losses = sparse_kernels.launch(student, known, shared, labels, spec, scale, gradient)
        return torch.stack((weighted(*losses, spec, scale.expand(student.shape[0])), *losses))

    def _by_sums(
        self, student: Tensor, kept: TopK, labels: Tensor | None, spec: RowSpec, scale: Tensor, gradient: bool
    ) -> Tensor:
        """Losses by sums over the student's vocabulary, for a `spec` that `covers` accepts: forward KL, with or without
        cross-entropy."""
        assert spec.divergence is not None
        temperature, weights = spec.divergence.temperature, scale.expand(student.shape[0], 1)
        valid = (
            torch.ones_like(weights, dtype=torch.bool) if labels is None else labels.unsqueeze(1) != spec.ignore_index
        )
        target = torch.zeros_like(valid, dtype=torch.int64) if labels is None else labels.unsqueeze(1).where(valid, 0)
        logits = at_least_float32(student)
        soft = softmax(logits, temperature)
        once = soft if temperature == 1.0 or not spec.ce_weight else softmax(logits, 1.0)
        against = Against(self._known(kept, temperature), logits, soft.log_sum, temperature, self._vocabulary)
        cross_entropy = once.log_sum - logits.gather(1, target) if spec.ce_weight else torch.zeros_like(weights)
        divergence = temperature**2 * against.divergence()
        total = weights * (spec.divergence_weight * divergence + spec.ce_weight * cross_entropy)
        if gradient:
            soft_weight, hard = weights * (spec.divergence_weight * temperature), weights * spec.ce_weight
            slope = soft.values.mul_(soft_weight * against.mass + (hard if once is soft else 0.0))
            if once is not soft:
                slope.add_(once.values.mul_(hard))
            against.take_from_(slope, soft_weight)
            slope.scatter_add_(1, target, -hard)
            student.copy_(slope.masked_fill_(~valid, 0.0))
        return torch.cat((total, divergence, cross_entropy), dim=1).where(valid, 0.0).t()

    def _known(self, kept: TopK, temperature: float) -> TopKProbs:
        values, other = at_least_float32(kept.values) / temperature, self._other(kept) / temperature
        number = max(1, self._vocabulary - kept.indices.shape[1])
        total = torch.cat((values, other + math.log(number)), dim=1).logsumexp(1, keepdim=True)
        return TopKProbs(kept.indices.long(), values - total, other - total)

    def _other(self, kept: TopK) -> Tensor:
        """Logit (n, 1) of each class without a stored logit."""
        return at_least_float32(kept.rest) - math.log(max(1, self._vocabulary - kept.indices.shape[1]))


class Against:
    """KL from a sparse teacher to the student's logits (n, V), with their log-sums (n, 1), float32 or float64."""

    def __init__(self, known: TopKProbs, logits: Tensor, log_sum: Tensor, temperature: float, vocabulary: int) -> None:
        self._shared = min(vocabulary, logits.shape[1])
        self._columns = known.columns.clamp(max=self._shared - 1)
        log_q = logits.gather(1, self._columns) / temperature - log_sum
        self._inside = (known.columns < self._shared) & ~log_q.isneginf()
        self._p, self._log_p = known.logs.exp().where(self._inside, 0.0), known.logs
        self._log_q = log_q.where(self._inside, 0.0)
        self._others = Others(known, logits[:, : self._shared], log_sum, temperature)
        self._others.leave_out(self._inside, self._log_q)
        self.mass = self._p.sum(1, keepdim=True) + self._others.mass
        """Sum of the teacher's probabilities over the student's columns (n, 1), float32 or float64."""

    def divergence(self) -> Tensor:
        """Sum of p (log p - log q) (n, 1) over the columns of both, float32 or float64."""
        at_kept = (self._p * (self._log_p.where(self._p > 0.0, 0.0) - self._log_q)).sum(1, keepdim=True)
        return at_kept + self._others.divergence()

    def take_from_(self, slope: Tensor, factor: Tensor) -> None:
        """Subtract p times a floating factor (n, 1) from `slope` (n, V), in place."""
        each = factor * self._others.p
        self._others.take_from_(slope[:, : self._shared], each)
        slope.scatter_add_(1, self._columns, (each - factor * self._p).where(self._inside, 0.0))


class Others:
    """The columns of both sides without a stored logit, among (n, S)."""

    def __init__(self, known: TopKProbs, logits: Tensor, log_sum: Tensor, temperature: float) -> None:
        self._masked = logits.isneginf() if bool(logits.amin() == -torch.inf) else None
        self.p = known.other.exp()
        self._log_p = known.other.where(self.p > 0.0, 0.0)
        present, summed = torch.full_like(log_sum, logits.shape[1]), logits
        if self._masked is not None:
            present, summed = present - self._masked.sum(1, keepdim=True), logits.masked_fill(self._masked, 0.0)
        self._count = present
        self._sum = summed.sum(1, keepdim=True) / temperature - present * log_sum

    def leave_out(self, kept: Tensor, log_q: Tensor) -> None:
        """Leave out columns: `kept` (n, K) bool, with their log q (n, K), floating."""
        self._count = self._count - kept.sum(1, keepdim=True)
        self._sum = self._sum - log_q.sum(1, keepdim=True)

    @property
    def mass(self) -> Tensor:
        """Sum of their probabilities (n, 1), float32 or float64."""
        return self.p * self._count

    def divergence(self) -> Tensor:
        """Their part of the divergence (n, 1), float32 or float64."""
        return self.p * (self._count * self._log_p - self._sum)

    def take_from_(self, slope: Tensor, each: Tensor) -> None:
        """Subtract `each` (n, 1), floating, from every column of `slope` (n, S) that isn't masked, in place."""
        slope.sub_(each if self._masked is None else each.where(~self._masked, 0.0))


def blocks(logits: Tensor) -> Iterator[slice]:
    """Ranges of the rows of logits (n, V), of any dtype, to compute one after the other."""
    size = max(1, BLOCKS.get(logits.device.type, BLOCK) // logits.shape[1])
    return (slice(begin, begin + size) for begin in range(0, logits.shape[0], size))
