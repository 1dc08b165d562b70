"""Distillation at the last layer: from hidden states to loss and gradients, without computing all logits at once.

Rows are processed in chunks. A chunk's logits are computed, replaced by their gradient in place, and multiplied into
the gradients of hidden states, weight and bias, all in the forward pass; the backward pass only scales. The memory
beyond inputs and gradients is one chunk of student and teacher logits, instead of the plain form's copies of all
logits.

Letters: N rows, n of them in a chunk, hidden size H of the student, V its vocabulary; the teacher's are H_t and V_t.
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
"""Copies of one model's logits that the plain form of a divergence with cross-entropy holds at its peak."""
SHARE = 10
"""The budget is 1 / SHARE of the plain form's memory, including the work space of the row losses: with buffers of
products it stays below an eighth, ..."""
BUDGET = 1 << 30
"""... but at most this many bytes: products of a few thousand rows gain nothing from more."""
LEAST_BUDGET = 1 << 22
"""Least bytes of a budget: smaller chunks only add overhead."""
TILE = {"cuda": 128}
"""Rows of a tile of a product, by kind of device: part of a tile costs as much as a whole one."""
WORKING_COPIES = 2
"""Copies of a block that the row losses of a CPU make."""

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Gradients of hidden states (N, H), weight (V, H) and bias (V,)."""


class KernelTeacher(Protocol):
    """A teacher for the losses of the student's rows."""

    @property
    def bytes_per_row(self) -> int:
        """Bytes of the teacher's logits for a row of a chunk."""
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
        """The parts of `RowLosses`, (3, n) floating, of some rows, from the student's logits (n, V), floating, and
        labels (n,) int64, with the scalar weight `scale`.

        With `gradient`, `student` is overwritten by the gradient of the total's sum. An ignored row has loss and
        gradient 0.
        """
        ...


class DenseTeacher:
    """Base of teachers with a logit for every class."""

    bytes_per_row = 0

    def logits(self, rows: RowIndex) -> Tensor | None:
        """Logits (n, V_t), floating, of some rows, which are only read; None: there is no teacher."""
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
        parts = row_loss_(student, self.logits(rows), labels, spec, row_weights=weights, gradient=gradient)
        return torch.stack(parts)


class NoTeacher(DenseTeacher):
    """No teacher: for cross-entropy alone."""

    def logits(self, rows: RowIndex) -> None:
        """None."""


class HiddenTeacher(DenseTeacher):
    """Hidden states (N, H_t), floating, and the last layer: weight (V_t, H_t) and bias (V_t,) if it has one."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        hidden, weight, bias = as_autocast(hidden.detach(), weight.detach(), None if bias is None else bias.detach())
        self._hidden, self._project = hidden, LastLayer(weight, bias)
        self.bytes_per_row = weight.shape[0] * weight.element_size()

    def logits(self, rows: RowIndex) -> Tensor:
        """Logits (n, V_t), floating, of some rows; the next call overwrites them."""
        return self._project(take_rows(self._hidden, rows))


class LastLayer:
    """A last layer that computes the logits of all chunks in the same memory."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias
        self._memory = weight.new_empty(0)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits (n, V) of hidden states (n, H), both in the weight's dtype; the next call overwrites them."""
        if _has_onednn(hidden):
            fused: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, self._weight, self._bias, "none", [], "")
            return fused
        shape = (hidden.shape[0], self._weight.shape[0])
        if self._memory.numel() < math.prod(shape):
            self._memory = self._weight.new_empty(math.prod(shape))
        logits = self._memory[: math.prod(shape)].view(shape)
        if self._bias is None:
            return torch.mm(hidden, self._weight.t(), out=logits)
        return torch.addmm(self._bias, hidden, self._weight.t(), out=logits)


def _has_onednn(hidden: Tensor) -> bool:
    """Whether oneDNN is available: for fewer than a few hundred rows it takes up to a third less time than MKL."""
    if hidden.device.type != "cpu" or hidden.dtype != torch.float32:
        return False
    found: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return found


class GradientSums:
    """The required gradients, accumulated chunk by chunk."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, ...]) -> None:
        self._from, self._begun = weight, False
        self._hidden = torch.zeros_like(hidden) if wanted[0] else None
        self._weight = torch.empty_like(weight) if wanted[1] else None
        self._bias = torch.zeros_like(bias) if bias is not None and wanted[2] else None

    def add(self, rows: RowIndex, hidden: Tensor, logits_gradient: Tensor) -> None:
        """Add a chunk: hidden states (n, H) and the gradient of its logits (n, V), both floating."""
        if self._hidden is not None:
            _put(torch.mm(logits_gradient, self._from), rows, self._hidden)
        if self._weight is not None:
            # the first chunk overwrites, which saves clearing the memory
            self._weight.addmm_(logits_gradient.t(), hidden, beta=float(self._begun))
        if self._bias is not None:
            self._bias += logits_gradient.sum(0)
        self._begun = True

    def finished(self) -> Gradients:
        """All three gradients; 0 if there was no row."""
        if self._weight is not None and not self._begun:
            self._weight.zero_()
        return self._hidden, self._weight, self._bias


@dataclass(frozen=True, eq=False)
class _Work:
    """Arguments of the computation on the student's side."""

    teacher: KernelTeacher
    labels: Tensor | None
    spec: RowSpec
    scale: Tensor
    """Weight of every row's loss, a scalar in the dtype of the losses."""
    chunks: list[RowIndex]
    wanted: tuple[bool, ...]
    """Which of the gradients of hidden states, weight and bias to compute."""

    def done(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor) -> tuple[Tensor, Gradients]:
        """Sums (3,) of the parts of `RowLosses`, the total's times `scale`, and the gradients of the total; from
        floating hidden states (N, H), weight (V, H) and bias (V,)."""
        sums, gradient = self.scale.new_zeros(3), any(self.wanted)
        project, gradients = LastLayer(weight, bias), GradientSums(hidden, weight, bias, self.wanted)
        for rows in self.chunks:
            states = take_rows(hidden, rows)
            logits, labels = project(states), take_rows_of_any(self.labels, rows)
            losses = self.teacher.losses(logits, rows, labels, self.spec, scale, gradient)
            sums += losses.sum(1)
            if gradient:
                gradients.add(rows, states, logits)
            del logits  # or the next chunk's would need additional memory
        return sums, gradients.finished()


class _LinearDistillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: _Work
    ) -> tuple[Tensor, Tensor, Tensor]:
        # in float16 a gradient that is divided before the caller's scale is applied may underflow
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
        """Scale in place the gradients of the forward pass, which may be as large as the weight, and return them.

        They are returned once, because autograd may accumulate into them.
        """
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("an earlier backward pass has used these gradients; compute the loss again")
        factor = of_total if ctx.late is None else of_total * ctx.late
        # a comparison would stall a GPU for longer than the product takes; on a CPU it saves the product
        if factor.device.type != "cpu" or factor.item() != 1.0:
            for gradient in (each for each in gradients if each is not None):
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
    """Sums of the rows' losses, divided by `divisor`, without all logits of student or teacher in memory at once.

    Args:
        hidden: Inputs of the student's last layer (N, H), in any floating dtype.
        weight: That layer's weight (V, H), in the same dtype.
        teacher: The teacher, for the same rows.
        labels: (N,) int64; rows of `spec.ignore_index` are ignored. None: all rows count.
        spec: The loss of a row.
        bias: That layer's bias (V,).
        divisor: None: the number of rows that count. With gradient accumulation: their number in all parts together.
        budget: Bytes for a chunk's logits of student and teacher. None: a tenth of the plain form's memory, within
            bounds.

    Returns:
        Three scalars in at least float32, of which only the total has a gradient, for `hidden`, `weight` and `bias`.
        The gradients are computed in the forward pass and returned once: a second backward pass raises RuntimeError.

    The idea of computing gradients in the forward pass, chunk by chunk, is from arXiv 2410.10989.
    """
    hidden, weight, bias = as_autocast(hidden, weight, bias)
    wanted = tuple(of is not None and of.requires_grad and torch.is_grad_enabled() for of in (hidden, weight, bias))
    counted = None if labels is None else labels != spec.ignore_index
    scale = _scale(divisor, counted, hidden)
    bytes_per_row = weight.shape[0] * weight.element_size() + teacher.bytes_per_row
    if budget is None:
        budget = chunk_budget(hidden, weight.shape[0])
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


def chunk_budget(hidden: Tensor, classes: int) -> int:
    """Bytes for the logits of a chunk of hidden states (N, H), floating: a tenth of what the plain form has for this
    number of classes, within bounds."""
    share = EAGER_COPIES * hidden.shape[0] * classes * hidden.element_size() // SHARE
    if hidden.device.type == "cpu":
        share -= min(share // 2, WORKING_COPIES * block_size() * max(4, hidden.element_size()))
    return min(max(share, LEAST_BUDGET), BUDGET)


def as_autocast(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Floating hidden states (..., H), weight (V, H) and bias (V,), unchanged or in the dtype of the surrounding
    autocast."""
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
    """Indices (n,) int64 of the rows to compute; None: all of them. A GPU, which counting would stall, computes all
    rows; ignored ones have no effect."""
    if counted is None or hidden.device.type != "cpu":
        return None
    return None if bool(counted.all()) else counted.nonzero().squeeze(1)


def _chunks(rows: Tensor | None, all_rows: int, size: int, multiple: int) -> list[RowIndex]:
    """Chunks of about equal length, at most `size`, of the rows or of `all_rows`; if possible, a `multiple`."""
    count = all_rows if rows is None else rows.shape[0]
    equal = math.ceil(count / max(1, math.ceil(count / size)))
    each = max(1, min(size, math.ceil(equal / multiple) * multiple))
    ranges = [slice(begin, min(count, begin + each)) for begin in range(0, count, each)]
    return list(ranges) if rows is None else [rows[each] for each in ranges]


def _scale(divisor: Tensor | float | None, counted: Tensor | None, hidden: Tensor) -> Tensor:
    """1 / divisor, in the dtype of the losses; counts at least one row, so that no rows result in 0 and not NaN."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if divisor is None:
        divisor = max(1, hidden.shape[0]) if counted is None else counted.sum().clamp(min=1)
    if isinstance(divisor, Tensor):
        return 1.0 / divisor.to(hidden.device, wide)
    # created on the device: a copy from the host would wait for it, and prevent the capture of a CUDA graph
    return torch.full((), 1.0 / divisor, dtype=wide, device=hidden.device)
