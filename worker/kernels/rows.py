"""Losses of rows of materialised logits, with the gradient written in place of the student's logits.

One call reads both sides' logits and leaves numbers per row; no (rows, classes) buffer is made besides the logits
themselves. On CUDA one Triton kernel does it (`worker.kernels.row_kernels`); elsewhere, in float64, and where Triton is
missing, `worker.kernels.references` do, over a few rows at a time, which is also what the kernel is held against.

Shapes: R rows, C columns of the student, which may be more or fewer than the teacher's: the columns that one side lacks
count as masked (a logit of -inf).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from worker.kernels import processor_rows, references
from worker.kernels.devices import HAS_TRITON
from worker.kernels.spec import RowInputs, RowLosses, RowSpec
from worker.tensors import at_least_float32

CHUNK = 1 << 20
"""Logits that the plain path works on at a time; it holds about ten float32 of working memory for each."""


def row_loss(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor | None,
    spec: RowSpec,
    *,
    row_weights: Tensor | None = None,
) -> RowLosses:
    """`row_loss_` for autograd: `total` (R,) has a gradient, which stands where the student's logits (R, C) stood.

    The logits are overwritten when they need a gradient; what saved them for its own backward fails there and says so.
    Let `row_weights` hold the division by the count of the batch (and a gradient scaler's factor, without which small
    gradients vanish in float16): a gradient of `total` that is 1 costs nothing more, any other one more pass. Backward
    runs once.
    """
    return RowLosses(*_RowLoss.apply(RowInputs(student, teacher, labels, row_weights), spec, student))  # type: ignore[no-untyped-call]


def row_loss_(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor | None,
    spec: RowSpec,
    *,
    row_weights: Tensor | None = None,
    gradient: bool = True,
) -> RowLosses:
    """Losses of rows; with `gradient`, the student's logits (R, C) become the gradient of the sum of `total`.

    `teacher` (R, D) may be missing where no divergence counts, `labels` (R,) where nothing looks at them. Everything is
    computed in float32 (float64 where the student's logits are), and nothing waits for the device. Raises ValueError
    for inputs that do not fit each other or `spec`.
    """
    inputs = RowInputs(student, teacher, labels, row_weights)
    check(inputs, spec)
    if not len(student):
        return RowLosses(*(student.new_zeros(0, dtype=torch.float32) for _ in RowLosses._fields))
    if runs_on_triton(student):
        from worker.kernels.row_kernels.launches import launch  # Triton is there on Linux alone

        divergence, cross_entropy = launch(inputs, spec, gradient)
    else:
        divergence, cross_entropy = plain(inputs, spec, gradient)
    return RowLosses(weighted(divergence, cross_entropy, spec, row_weights), divergence, cross_entropy)


def runs_on_triton(logits: Tensor) -> bool:
    """Whether the kernel is for logits (R, C) of this dtype on this device; it computes in float32."""
    return HAS_TRITON and logits.is_cuda and logits.dtype != torch.float64


def weighted(divergence: Tensor, cross_entropy: Tensor, spec: RowSpec, row_weights: Tensor | None) -> Tensor:
    """The total of each row (R,); a part that weighs nothing is 0 already."""
    total = spec.divergence_weight * divergence + spec.ce_weight * cross_entropy
    return total if row_weights is None else total * row_weights


def check(inputs: RowInputs, spec: RowSpec) -> None:
    """Raise ValueError unless inputs and `spec` fit together."""
    student, teacher, labels, row_weights = inputs
    rows = student.shape[:1]
    for problem, what in (
        (student.ndim != 2 or not student.is_floating_point(), "student: takes floating logits (R, C)"),
        (student.stride(-1) != 1 and student.shape[-1] > 1, "student: takes rows without gaps between the columns"),
        (needs_teacher(spec) and teacher is None, "teacher: the divergence needs its logits"),
        (teacher is not None and (teacher.ndim != 2 or teacher.shape[:1] != rows), "teacher: takes logits (R, D)"),
        (needs_labels(spec) and labels is None, "labels: the cross-entropy, `nkd` and `dkd` need them"),
        (labels is not None and (labels.shape != rows or labels.is_floating_point()), "labels: takes integers (R,)"),
        (row_weights is not None and row_weights.shape != rows, "row_weights: takes numbers (R,)"),
    ):
        if problem:
            raise ValueError(what)


def needs_teacher(spec: RowSpec) -> bool:
    """Whether a divergence counts."""
    return spec.divergence is not None and spec.divergence_weight != 0.0


def needs_labels(spec: RowSpec) -> bool:
    """Whether what counts looks at the label."""
    by_target = spec.divergence is not None and spec.divergence.kind in {"nkd", "dkd"} and needs_teacher(spec)
    return by_target or spec.ce_weight != 0.0


def plain(inputs: RowInputs, spec: RowSpec, gradient: bool) -> tuple[Tensor, Tensor]:
    """Divergence and cross-entropy (R,), some rows at a time: written out where it can be, or by the references."""
    covered = processor_rows.covers(spec) or processor_rows.covers_alone(spec)
    written_out = inputs.student.device.type == "cpu" and covered
    logits, compute = (processor_rows.block_size(), _quick_part) if written_out else (CHUNK, plain_by_autograd)
    size = max(1, logits // max(1, inputs.student.shape[-1]))
    parts = [compute(_part(inputs, start, start + size), spec, gradient) for start in range(0, len(inputs[0]), size)]
    divergences, cross_entropies = zip(*parts, strict=True)
    return torch.cat(divergences), torch.cat(cross_entropies)


def _part(inputs: RowInputs, start: int, stop: int) -> RowInputs:
    teacher, labels, weights = (
        None if side is None else side[start:stop] for side in (inputs.teacher, inputs.labels, inputs.row_weights)
    )
    return RowInputs(inputs.student[start:stop], teacher, labels, weights)


def _quick_part(inputs: RowInputs, spec: RowSpec, gradient: bool) -> tuple[Tensor, Tensor]:
    valid = _valid(inputs, spec)
    counted = valid.to(torch.promote_types(torch.float32, inputs.student.dtype))
    labels = torch.zeros_like(valid, dtype=torch.int64) if inputs.labels is None else inputs.labels.where(valid, 0)
    weights = counted if inputs.row_weights is None else counted * inputs.row_weights
    teacher = None if inputs.teacher is None else inputs.teacher.detach()
    block = processor_rows.RowBlock(inputs.student.detach(), teacher, labels, weights)
    alone = processor_rows.covers_alone(spec)
    losses = (processor_rows.cross_entropy_ if alone else processor_rows.forward_kl_)(block, spec, gradient)
    if losses is None:
        return plain_by_autograd(inputs, spec, gradient)
    if gradient and not bool(valid.all()):
        block.student.masked_fill_(~valid.unsqueeze(1), 0.0)  # they may hold anything, also what times 0 is not 0
    return losses[0].where(valid, 0.0), losses[1].where(valid, 0.0)


def plain_by_autograd(inputs: RowInputs, spec: RowSpec, gradient: bool) -> tuple[Tensor, Tensor]:
    """Divergence and cross-entropy of each row (R,) as the references define them, differentiated by autograd."""
    valid = _valid(inputs, spec)
    raw = at_least_float32(inputs.student.detach()).requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        parts = [part.where(valid, 0.0) for part in _values(raw, inputs, spec, valid)]
        total = weighted(parts[0], parts[1], spec, inputs.row_weights).sum()
    if gradient:
        slope = torch.autograd.grad(total, raw)[0] if total.requires_grad else torch.zeros_like(raw)
        inputs.student.detach().copy_(slope.masked_fill_(~valid.unsqueeze(-1), 0.0))
    divergence, cross_entropy = (part.detach().to(torch.promote_types(torch.float32, part.dtype)) for part in parts)
    return divergence, cross_entropy


def _valid(inputs: RowInputs, spec: RowSpec) -> Tensor:
    if inputs.labels is None:
        return torch.ones(len(inputs.student), dtype=torch.bool, device=inputs.student.device)
    return inputs.labels != spec.ignore_index


def _values(raw: Tensor, inputs: RowInputs, spec: RowSpec, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Divergence and cross-entropy (R,) of raw logits; anything in rows that are not valid."""
    labels = torch.zeros_like(valid, dtype=torch.int64) if inputs.labels is None else inputs.labels.where(valid, 0)
    divergence = cross_entropy = raw.new_zeros(len(raw))
    if spec.divergence is not None and spec.divergence_weight != 0.0 and inputs.teacher is not None:
        teacher = at_least_float32(inputs.teacher.detach())
        width = max(raw.shape[-1], teacher.shape[-1])
        divergence = references.divergence(spec.divergence, widened(raw, width), widened(teacher, width), labels)
    if spec.ce_weight != 0.0:
        cross_entropy = references.cross_entropy(raw, labels, spec.label_smoothing)
    return divergence, cross_entropy


def widened(logits: Tensor, width: int) -> Tensor:
    """`logits` (R, C) with masked columns added up to `width`."""
    return F.pad(logits, (0, width - logits.shape[-1]), value=-torch.inf)


class _RowLoss(torch.autograd.Function):
    """Hands out in backward what forward left in the student's logits."""

    @staticmethod
    def forward(ctx: Any, inputs: RowInputs, spec: RowSpec, student: Tensor) -> tuple[Tensor, ...]:
        """The losses; `student` is among the inputs too, and stands apart for autograd to see it."""
        gradient = ctx.needs_input_grad[2]
        logits, teacher, labels, row_weights = inputs
        losses = row_loss_(logits.detach(), teacher, labels, spec, row_weights=row_weights, gradient=gradient)
        ctx.mark_non_differentiable(losses.divergence, losses.cross_entropy)
        if gradient:
            torch.autograd.graph.increment_version(student)  # the kernel's writes are not seen otherwise
            ctx.gradient, ctx.version = student.detach(), student._version
        return tuple(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[None, None, Tensor]:
        """The gradient, times what comes from above."""
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("the gradient of row_loss was handed out already: backward runs once")
        if gradient._version != ctx.version:
            raise RuntimeError(
                "the logits given to row_loss were changed before backward, and with them their gradient"
            )
        scale_rows_(gradient, upstream)
        return None, None, gradient


def scale_rows_(rows: Tensor, factors: Tensor) -> None:
    """Multiply each row (R, C) by its factor (R,) in place; where all are 1, nothing is written."""
    if runs_on_triton(rows):
        from worker.kernels.row_kernels.launches import scale  # as above

        scale(rows, factors)
    elif bool((factors != 1.0).any()):
        rows.mul_(factors.unsqueeze(-1))
