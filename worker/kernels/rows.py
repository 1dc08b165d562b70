"""Losses of rows of materialised logits, with the gradient written over the student's logits.

One call reads student and teacher logits and returns numbers per row, without any other (rows, classes) buffer. On CUDA
one Triton kernel computes them (`worker.kernels.row_kernels`); elsewhere, in float64, and without Triton,
`worker.kernels.references` computes them, a few rows at a time; the kernel is tested against it.

Shapes: R rows, C columns of the student, which may be more or fewer than the teacher's: columns that one side lacks
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
"""Logits that the plain path computes at a time, with about ten float32 of working memory for each."""


def row_loss(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor | None,
    spec: RowSpec,
    *,
    row_weights: Tensor | None = None,
) -> RowLosses:
    """`row_loss_` for autograd: `total` (R,) has a gradient, which is stored over the student's logits (R, C),
    floating; `teacher` (R, D), `labels` and `row_weights` (R,) as there.

    The logits are overwritten if they need a gradient; an operation that saved them for its backward pass raises an
    error there. `row_weights` should include the division by the count of the batch (and a gradient scaler's factor,
    without which small gradients underflow in float16): a gradient of `total` that is 1 costs nothing more, any other
    one more pass. Backward runs once.
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
    """Losses of rows; with `gradient`, the student's logits (R, C) are overwritten by the gradient of the sum of
    `total`.

    `teacher` (R, D), floating, may be None without a divergence, `labels` (R,) int64 if they are not needed;
    `row_weights` are (R,) floating. Everything is computed in float32 (float64 for student logits in float64), without
    waiting for the device. Raises ValueError for inputs that do not fit each other or `spec`.
    """
    inputs = RowInputs(student, teacher, labels, row_weights)
    check(inputs, spec)
    if not len(student):
        return RowLosses(*(student.new_zeros(0, dtype=torch.float32) for _ in RowLosses._fields))
    if runs_on_triton(student):
        from worker.kernels.row_kernels.launches import launch  # Triton is available on Linux alone

        divergence, cross_entropy = launch(inputs, spec, gradient)
    else:
        divergence, cross_entropy = plain(inputs, spec, gradient)
    return RowLosses(weighted(divergence, cross_entropy, spec, row_weights), divergence, cross_entropy)


def runs_on_triton(logits: Tensor) -> bool:
    """Whether the kernel supports logits (R, C) of this dtype on this device; it computes in float32."""
    return HAS_TRITON and logits.is_cuda and logits.dtype != torch.float64


def weighted(divergence: Tensor, cross_entropy: Tensor, spec: RowSpec, row_weights: Tensor | None) -> Tensor:
    """The total of each row, from its parts and weights, all (R,) floating; a part with weight 0 is 0 already."""
    total = spec.divergence_weight * divergence + spec.ce_weight * cross_entropy
    return total if row_weights is None else total * row_weights


def check(inputs: RowInputs, spec: RowSpec) -> None:
    """Raise ValueError unless inputs and `spec` fit together."""
    student, teacher, labels, row_weights = inputs
    rows = student.shape[:1]
    for problem, what in (
        (student.ndim != 2 or not student.is_floating_point(), "student: accepted: floating logits (R, C)"),
        (student.stride(-1) != 1 and student.shape[-1] > 1, "student: accepted: rows without gaps between the columns"),
        (needs_teacher(spec) and teacher is None, "teacher: the divergence needs its logits"),
        (teacher is not None and (teacher.ndim != 2 or teacher.shape[:1] != rows), "teacher: accepted: logits (R, D)"),
        (needs_labels(spec) and labels is None, "labels: the cross-entropy, `nkd` and `dkd` need them"),
        (
            labels is not None and (labels.shape != rows or labels.is_floating_point()),
            "labels: accepted: integers (R,)",
        ),
        (row_weights is not None and row_weights.shape != rows, "row_weights: accepted: numbers (R,)"),
    ):
        if problem:
            raise ValueError(what)


def needs_teacher(spec: RowSpec) -> bool:
    """Whether there is a divergence with a weight other than 0."""
    return spec.divergence is not None and spec.divergence_weight != 0.0


def needs_labels(spec: RowSpec) -> bool:
    """Whether a part with a weight other than 0 uses the label."""
    by_target = spec.divergence is not None and spec.divergence.kind in {"nkd", "dkd"} and needs_teacher(spec)
    return by_target or spec.ce_weight != 0.0


def plain(inputs: RowInputs, spec: RowSpec, gradient: bool) -> tuple[Tensor, Tensor]:
    """Divergence and cross-entropy (R,), some rows at a time: with explicit gradients if covered, else by the
    references."""
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
        block.student.masked_fill_(~valid.unsqueeze(1), 0.0)  # ignored rows may have NaN or infinity
    return losses[0].where(valid, 0.0), losses[1].where(valid, 0.0)


def plain_by_autograd(inputs: RowInputs, spec: RowSpec, gradient: bool) -> tuple[Tensor, Tensor]:
    """Divergence and cross-entropy of each row (R,) by the references, differentiated by autograd."""
    valid = _valid(inputs, spec)
    logits = at_least_float32(inputs.student.detach()).requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        parts = [part.where(valid, 0.0) for part in _values(logits, inputs, spec, valid)]
        total = weighted(parts[0], parts[1], spec, inputs.row_weights).sum()
    if gradient:
        slope = torch.autograd.grad(total, logits)[0] if total.requires_grad else torch.zeros_like(logits)
        inputs.student.detach().copy_(slope.masked_fill_(~valid.unsqueeze(-1), 0.0))
    divergence, cross_entropy = (part.detach().to(torch.promote_types(torch.float32, part.dtype)) for part in parts)
    return divergence, cross_entropy


def _valid(inputs: RowInputs, spec: RowSpec) -> Tensor:
    if inputs.labels is None:
        return torch.ones(len(inputs.student), dtype=torch.bool, device=inputs.student.device)
    return inputs.labels != spec.ignore_index


def _values(logits: Tensor, inputs: RowInputs, spec: RowSpec, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Divergence and cross-entropy (R,) of logits logits; anything in rows that are not valid."""
    labels = torch.zeros_like(valid, dtype=torch.int64) if inputs.labels is None else inputs.labels.where(valid, 0)
    divergence = cross_entropy = logits.new_zeros(len(logits))
    if spec.divergence is not None and spec.divergence_weight != 0.0 and inputs.teacher is not None:
        teacher = at_least_float32(inputs.teacher.detach())
        width = max(logits.shape[-1], teacher.shape[-1])
        divergence = references.divergence(spec.divergence, widened(logits, width), widened(teacher, width), labels)
    if spec.ce_weight != 0.0:
        cross_entropy = references.cross_entropy(logits, labels, spec.label_smoothing)
    return divergence, cross_entropy


def widened(logits: Tensor, width: int) -> Tensor:
    """`logits` (R, C), floating, with masked columns added: (R, width)."""
    return F.pad(logits, (0, width - logits.shape[-1]), value=-torch.inf)


class _RowLoss(torch.autograd.Function):
    """Returns in backward the gradient that forward has stored in the student's logits."""

    @staticmethod
    def forward(ctx: Any, inputs: RowInputs, spec: RowSpec, student: Tensor) -> tuple[Tensor, ...]:
        """The losses (R,); `student` (R, C) is part of `inputs` too, and a separate argument for autograd."""
        gradient = ctx.needs_input_grad[2]
        logits, teacher, labels, row_weights = inputs
        losses = row_loss_(logits.detach(), teacher, labels, spec, row_weights=row_weights, gradient=gradient)
        ctx.mark_non_differentiable(losses.divergence, losses.cross_entropy)
        if gradient:
            torch.autograd.graph.increment_version(student)  # autograd does not notice the kernel's writes
            ctx.gradient, ctx.version = student.detach(), student._version
        return tuple(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[None, None, Tensor]:
        """The gradient (R, C), times the upstream gradient (R,)."""
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("the gradient of row_loss was returned already: backward runs once")
        if gradient._version != ctx.version:
            raise RuntimeError(
                "the logits given to row_loss were changed before backward, and with them their gradient"
            )
        scale_rows_(gradient, upstream)
        return None, None, gradient


def scale_rows_(rows: Tensor, factors: Tensor) -> None:
    """Multiply each row (R, C) by its factor (R,) in place, both floating; if all are 1, nothing is written."""
    if runs_on_triton(rows):
        from worker.kernels.row_kernels.launches import scale  # as above

        scale(rows, factors)
    elif bool((factors != 1.0).any()):
        rows.mul_(factors.unsqueeze(-1))
