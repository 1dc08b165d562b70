"""Distillation at the last layer: hidden states in, loss and gradients out, and never all logits at once.

The rows go through in chunks. A chunk's logits are made, turned into their own gradient in place, and multiplied into
the gradients of what made them, all in the forward pass; the backward pass only scales. What is held beyond inputs and
gradients is one chunk of each side's logits instead of the copies of all logits that the plain form holds.

Letters: N rows, n of them in a chunk, H hidden numbers of the student, V its vocabulary; the teacher's are H_t and V_t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from worker.kernels.processor_rows import block_size
from worker.kernels.rows import row_loss_
from worker.kernels.spec import RowLosses, RowSpec
from worker.tensors import RowIndex, take_rows, take_rows_of_any

EAGER_COPIES = 6
"""Copies of one side's logits that the plain form of a divergence with cross-entropy holds at its peak."""
SHARE = 10
"""The budget is this part of what the plain form needs, with what the row losses work in: with buffers of products
it stays below an eighth, ..."""
BUDGET = 1 << 30
"""... but at most so many bytes: products of a few thousand rows gain nothing from more."""
LEAST_BUDGET = 1 << 22
"""Fewer bytes are not worth another turn."""
TILE = {"cuda": 128}
"""Rows that a product takes at a time, by kind of device: a part of a tile costs as much as a whole one."""
WORKING_COPIES = 2
"""Of a block, which the row losses of a processor make."""

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of hidden states, weight and bias."""


class KernelTeacher(Protocol):
    """What the student's logits are held against."""

    @property
    def bytes_per_row(self) -> int:
        """Memory that a row of a chunk takes on the teacher's side."""
        ...

    def losses(
        self,
        student: Tensor,
        rows: RowIndex,
        labels: Tensor | None,
        spec: RowSpec,
        scale: Tensor,
        gradient: bool,
    ) -> Tensor:
        """The parts of `RowLosses` (3, n) of some rows, by their logits (n, V) and labels (n,), weighted by `scale`.

        With `gradient`, `student` becomes that of the total's sum. An ignored row costs 0 and has a gradient of 0.
        """
        ...


class DenseTeacher:
    """Base of teachers that give a logit for every class."""

    bytes_per_row = 0

    def logits(self, rows: RowIndex) -> Tensor | None:
        """Logits (n, V_t) of some rows, which are only read; None: there is no teacher."""
        raise NotImplementedError

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
        weights = scale.expand(student.shape[0])
        given = row_loss_(student, self.logits(rows), labels, spec, row_weights=weights, gradient=gradient)
        return torch.stack(given)


class NoTeacher(DenseTeacher):
    """For cross-entropy alone."""

    def logits(self, rows: RowIndex) -> None:
        """None."""


class HiddenTeacher(DenseTeacher):
    """Hidden states (N, H_t) and the last layer: a weight (V_t, H_t) and a bias (V_t,) if it has one."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        hidden, weight, bias = as_autocast(hidden.detach(), weight.detach(), None if bias is None else bias.detach())
        self._hidden, self._project = hidden, LastLayer(weight, bias)
        self.bytes_per_row = weight.shape[0] * weight.element_size()

    def logits(self, rows: RowIndex) -> Tensor:
        """By one product; the next call overwrites them."""
        return self._project(take_rows(self._hidden, rows))


class LastLayer:
    """A last layer that makes the logits of one chunk after the other in the same memory."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias
        self._memory = weight.new_empty(0)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits (n, V) of hidden states (n, H); the next call overwrites them."""
        if _has_onednn(hidden):
            made: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, self._weight, self._bias, "none", [], "")
            return made
        shape = (hidden.shape[0], self._weight.shape[0])
        if self._memory.numel() < math.prod(shape):
            self._memory = self._weight.new_empty(math.prod(shape))
        logits = self._memory[: math.prod(shape)].view(shape)
        if self._bias is None:
            return torch.mm(hidden, self._weight.t(), out=logits)
        return torch.addmm(self._bias, hidden, self._weight.t(), out=logits)


def _has_onednn(hidden: Tensor) -> bool:
    """Whether its product can be had: for fewer than a few hundred rows it takes up to a third less time than MKL's."""
    if hidden.device.type != "cpu" or hidden.dtype != torch.float32:
        return False
    found: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return found


class GradientSums:
    """The gradients that are wanted, filled chunk by chunk."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, ...]) -> None:
        self._from, self._begun = weight, False
        self._hidden = torch.zeros_like(hidden) if wanted[0] else None
        self._weight = torch.empty_like(weight) if wanted[1] else None
        self._bias = torch.zeros_like(bias) if bias is not None and wanted[2] else None

    def add(self, rows: RowIndex, hidden: Tensor, of_logits: Tensor) -> None:
        """Take in a chunk's hidden states (n, H) and the gradient of its logits (n, V)."""
        if self._hidden is not None:
            _put(torch.mm(of_logits, self._from), rows, self._hidden)
        if self._weight is not None:
            # the first chunk overwrites, which spares a pass over the memory to clear it
            self._weight.addmm_(of_logits.t(), hidden, beta=float(self._begun))
        if self._bias is not None:
            self._bias += of_logits.sum(0)
        self._begun = True

    def finished(self) -> Gradients:
        """All three; zero where no row came."""
        if self._weight is not None and not self._begun:
            self._weight.zero_()
        return self._hidden, self._weight, self._bias


@dataclass(frozen=True, eq=False)
class _Work:
    """What is to be done with the student's side."""

    teacher: KernelTeacher
    labels: Tensor | None
    spec: RowSpec
    scale: Tensor
    """Of every row's loss, in the dtype of the losses."""
    chunks: list[RowIndex]
    wanted: tuple[bool, ...]
    """Of the gradients of hidden states, weight and bias, which to compute."""

    def done(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor) -> tuple[Tensor, Gradients]:
        """Sums (3,) of the parts of `RowLosses`, the total's times `scale`, and the gradients of that."""
        sums, gradient = self.scale.new_zeros(3), any(self.wanted)
        project, gradients = LastLayer(weight, bias), GradientSums(hidden, weight, bias, self.wanted)
        for rows in self.chunks:
            given = take_rows(hidden, rows)
            logits, labels = project(given), take_rows_of_any(self.labels, rows)
            losses = self.teacher.losses(logits, rows, labels, self.spec, scale, gradient)
            sums += losses.sum(1)
            if gradient:
                gradients.add(rows, given, logits)
            del logits  # or the next chunk's would be made beside them
        return sums, gradients.finished()


class _LinearDistillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: _Work
    ) -> tuple[Tensor, Tensor, Tensor]:
        # in float16 a gradient that is divided before the caller's scale is known may vanish
        ctx.late = work.scale if hidden.dtype == torch.float16 else None
        scale = work.scale if ctx.late is None else torch.ones_like(work.scale)
        sums, ctx.gradients = work.done(hidden, weight, bias, scale)
        divergence, cross_entropy = sums[1:] * work.scale
        total = sums[0] if ctx.late is None else sums[0] * work.scale
        ctx.mark_non_differentiable(divergence, cross_entropy)
        return total, divergence, cross_entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Scale in place what the forward pass made, which may be as large as the weight, and hand it over.

        Whoever gets it may add to it, so it is given once.
        """
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("an earlier backward pass was given these gradients; compute the loss again")
        factor = of_total if ctx.late is None else of_total * ctx.late
        # comparing would stall a GPU for longer than the product takes; on a processor it spares the product
        if factor.device.type != "cpu" or factor.item() != 1.0:
            for gradient in (given for given in gradients if given is not None):
                gradient.mul_(factor)
        return *gradients, None


def linear_distillation(
    hidden: Tensor,
    weight: Tensor,
    teacher: KernelTeacher,
    labels: Tensor | None,
    spec: RowSpec,
    *,
    bias: Tensor | None = None,
    divisor: Tensor | float | None = None,
    budget: int | None = None,
) -> RowLosses:
    """Sums over the rows of what they cost, over `divisor`; neither side's logits ever exist in full.

    Args:
        hidden: What the student's last layer is given (N, H), in any floating dtype.
        weight: That layer's weight (V, H), in the same dtype.
        teacher: The other side, for the same rows.
        labels: (N,) int64; rows of `spec.ignore_index` count for nothing. None: all rows count.
        spec: What a row costs.
        bias: That layer's bias (V,).
        divisor: None: the number of rows that count. With gradient accumulation: their number in all parts together.
        budget: Bytes for a chunk's logits of both sides. None: a tenth of what the plain form needs, within bounds.

    Returns:
        Three scalars in at least float32, of which only the total has a gradient, for `hidden`, `weight` and `bias`.
        The gradients are made on the way and handed over once: a second backward pass raises RuntimeError.

    The idea of making gradients in the forward pass, chunk by chunk: arXiv 2410.10989.
    """
    hidden, weight, bias = as_autocast(hidden, weight, bias)
    wanted = tuple(of is not None and of.requires_grad and torch.is_grad_enabled() for of in (hidden, weight, bias))
    counted = None if labels is None else labels != spec.ignore_index
    scale = _scale(divisor, counted, hidden)
    bytes_per_row = weight.shape[0] * weight.element_size() + teacher.bytes_per_row
    if budget is None:
        budget = _budget(hidden, weight)
    work = _Work(
        teacher,
        labels,
        spec,
        scale,
        _chunks(
            _rows(counted, hidden),
            hidden.shape[0],
            max(1, budget // bytes_per_row),
            TILE.get(hidden.device.type, 1),
        ),
        wanted,
    )
    return RowLosses(*_LinearDistillation.apply(hidden, weight, bias, work))  # type: ignore[no-untyped-call]


def _budget(hidden: Tensor, weight: Tensor) -> int:
    share = EAGER_COPIES * hidden.shape[0] * weight.shape[0] * weight.element_size() // SHARE
    if hidden.device.type == "cpu":
        share -= min(share // 2, WORKING_COPIES * block_size() * max(4, hidden.element_size()))
    return min(max(share, LEAST_BUDGET), BUDGET)


def as_autocast(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states (..., H), weight (V, H) and bias (V,) as they are, or in the dtype that the autocast around the
    call asks for."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return hidden, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _put(values: Tensor, rows: RowIndex, into: Tensor) -> None:
    if isinstance(rows, slice):
        into[rows] = values
    else:
        into.index_copy_(0, rows, values)


def _rows(counted: Tensor | None, hidden: Tensor) -> Tensor | None:
    """Numbers (n,) of the rows to work on; None: all of them, as on a GPU, which would be stalled by counting, and so
    works on ignored rows like on the others, to no effect."""
    if counted is None or hidden.device.type != "cpu":
        return None
    return None if bool(counted.all()) else counted.nonzero().squeeze(1)


def _chunks(rows: Tensor | None, all_rows: int, size: int, multiple: int) -> list[RowIndex]:
    """Parts of about equal length, of at most `size`, of the rows or of `all_rows`; if it can be, of a `multiple`."""
    count = all_rows if rows is None else rows.shape[0]
    equal = math.ceil(count / max(1, math.ceil(count / size)))
    each = max(1, min(size, math.ceil(equal / multiple) * multiple))
    ranges = [slice(begin, min(count, begin + each)) for begin in range(0, count, each)]
    return list(ranges) if rows is None else [rows[each] for each in ranges]


def _scale(divisor: Tensor | float | None, counted: Tensor | None, hidden: Tensor) -> Tensor:
    """One over the divisor, in the dtype of the losses; of at least one row, so that none at all give 0 and not NaN."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if divisor is None:
        divisor = max(1, hidden.shape[0]) if counted is None else counted.sum().clamp(min=1)
    if isinstance(divisor, Tensor):
        return 1.0 / divisor.to(hidden.device, wide)
    # made on the device: a copy from the host would wait for it, and spoil the capture of a CUDA graph
    return torch.full((), 1.0 / divisor, dtype=wide, device=hidden.device)
