"""Distillation at the last layer in tiles that never leave the chip: no side's logits reach the device's memory.

What is kept of a row are a few sums. That costs products: both sides' logits are made once for the loss, and twice more
for the gradients, one time for each of them; eight products in all, where the chunks of `worker.kernels.linear` make
four and keep their logits until they are used: what it spares is memory. Without gradients both make the same two, and
the tiles spare writing the logits and reading them twice, which is worth more than what the library's own product is
faster by where hidden states are short.

Shapes: N rows, V columns of the student's vocabulary, H its hidden numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from worker.kernels.devices import HAS_TRITON, device_of
from worker.kernels.plan import plan
from worker.kernels.spec import RowSpec

ROWS, COLUMNS, HIDDEN = 128, 64, 32
"""Of a tile: both sides' logits are there at once, and larger ones spill registers."""
WARPS, STAGES = 8, 4
MOST_HIDDEN = 256
"""Where a pass without gradients takes tiles by itself. On an H100, by arithmetic: a logit costs chunks 2 H operations
at the library's 700 TFLOP/s, and 6 bytes at 4 TB/s to be written once and read twice. A tile of 128 x 64 makes 43
operations of each byte that the second-level cache hands it at 5.5 TB/s, 235 TFLOP/s at best: even at H = 265."""
KINDS = ("forward-kl", "reverse-kl")
WIDE = torch.float32


class Head(NamedTuple):
    """A side: hidden states (N, H), weight (V, H), bias (V,) if it has one."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As the kernels take it."""
        hidden, weight, bias = self
        strides = hidden.stride(0), weight.stride(0)
        return hidden, weight, weight if bias is None else bias, *strides, *reversed(weight.shape)


def head_of(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Head:
    """With rows that have no gaps between their numbers."""
    return Head(_in_rows(hidden), _in_rows(weight), bias)


def _in_rows(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(-1) == 1 or matrix.shape[-1] == 1 else matrix.contiguous()


class Sums(NamedTuple):
    """What is known of every row (N,), float32."""

    high_q: Tensor
    log_q: Tensor
    high_p: Tensor
    log_p: Tensor
    log_hard: Tensor
    known: Tensor
    value: Tensor
    """The divergence without its factor."""
    cross_entropy: Tensor


@dataclass(frozen=True, eq=False)
class Task:
    """Both sides, and what is asked of them."""

    student: Head
    teacher: Head
    labels: Tensor | None
    spec: RowSpec

    @property
    def reverse(self) -> bool:
        """Whether the divergence is an expectation under the student."""
        return plan(self.spec).kind == "reverse-kl"

    @property
    def constants(self) -> dict[str, Any]:
        """Of every kernel."""
        assert self.spec.divergence is not None
        return {
            "REVERSE": self.reverse,
            "HARD": self.spec.ce_weight != 0.0,
            "CAPPED": self.spec.divergence.softcap is not None,
            "LABELLED": self.labels is not None,
            "STUDENT_BIASED": self.student.bias is not None,
            "TEACHER_BIASED": self.teacher.bias is not None,
            "N": ROWS,
            "V": COLUMNS,
            "H": HIDDEN,
            "num_warps": WARPS,
            "num_stages": STAGES,
        }

    @property
    def head(self) -> tuple[float, float, float]:
        """Temperature, scale and cap."""
        assert self.spec.divergence is not None
        return self.spec.divergence.temperature, self.spec.divergence.logit_scale, self.spec.divergence.softcap or 1.0

    @property
    def factors(self) -> tuple[float, float]:
        """What multiplies the gradients of the divergence and of the cross-entropy."""
        return self.spec.divergence_weight * plan(self.spec).factor / self.head[0], self.spec.ce_weight

    def split(self, columns: int) -> tuple[int, int]:
        """How many programs share the columns of a row, and how many of them each takes."""
        blocks, tiles = -(-len(self.student.hidden) // ROWS), -(-columns // COLUMNS)
        each = -(-tiles // min(tiles, max(1, 2 * processors(self.student.hidden) // blocks)))
        return -(-tiles // each), each * COLUMNS


def refusal(student: Head, teacher: Head | None, spec: RowSpec, class_weights: Tensor | None) -> str | None:
    """Why tiles can't do it; none where they can."""
    kind = plan(spec).kind
    for problem, what in (
        (not runs_tiled(student.hidden), "a CUDA device, Triton, and hidden states in 16 bits"),
        (teacher is None, "a teacher that is given by its hidden states and last layer"),
        (teacher is not None and teacher.hidden.dtype != student.hidden.dtype, "both sides in one dtype"),
        (kind not in KINDS, f"divergences {' and '.join(KINDS)}, not {kind or 'none'}"),
        (spec.label_smoothing != 0.0, "labels without smoothing"),
        (class_weights is not None, "classes without weights"),
    ):
        if problem:
            return f"tiled takes {what}"
    return None


def runs_tiled(hidden: Tensor) -> bool:
    """Whether the kernels are for these hidden states."""
    return HAS_TRITON and hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16)


def pays(student: Head, teacher: Head) -> bool:
    """Whether a pass without gradients should be quicker in tiles."""
    sizes = student.hidden.shape[1] + teacher.hidden.shape[1]
    return sizes <= 2 * MOST_HIDDEN


def tiled_distillation(task: Task, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the rows times `scale`: the total, which has gradients, the divergence, and the cross-entropy."""
    total, divergence, cross_entropy = _Tiled.apply(*task.student, task, scale)  # type: ignore[no-untyped-call]
    return total, divergence, cross_entropy


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, task: Task, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        found, spec = sums(task), task.spec
        valid = torch.ones_like(found.value, dtype=torch.bool)
        if task.labels is not None:
            valid = task.labels != spec.ignore_index
        divergence = plan(spec).factor * found.value.where(valid, 0.0).sum() * scale
        counted = valid if spec.ce_weight != 0.0 else torch.zeros_like(valid)
        cross_entropy = found.cross_entropy.where(counted, 0.0).sum() * scale
        ctx.save_for_backward(hidden, weight, bias, scale, *found)
        ctx.task, ctx.has_bias = task, bias is not None
        ctx.mark_non_differentiable(divergence, cross_entropy)
        return spec.divergence_weight * divergence + spec.ce_weight * cross_entropy, divergence, cross_entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        _, _, _, scale, *found = ctx.saved_tensors
        factor, known = of_total * scale, torch.stack(found[:7])
        of_hidden = gradient_of_hidden(ctx.task, known, factor) if ctx.needs_input_grad[0] else None
        of_weight = of_bias = None
        if any(ctx.needs_input_grad[1:3]):
            of_weight, of_bias = gradients_of_head(ctx.task, known, factor)
        return of_hidden, of_weight, of_bias if ctx.has_bias else None, None, None


def sums(task: Task) -> Sums:
    """Of every row, by one pass over the vocabulary."""
    from worker.kernels.tiled_kernels import statistics_kernel  # Triton is there on Linux alone

    rows = len(task.student.hidden)
    splits, of_a_split = task.split(max(len(task.student.weight), len(task.teacher.weight)))
    statistics = torch.empty((8, splits, rows), dtype=WIDE, device=task.student.hidden.device)
    with device_of(statistics):
        statistics_kernel[(-(-rows // ROWS), splits)](
            task.student.arguments,
            task.teacher.arguments,
            _labels(task),
            statistics,
            rows,
            of_a_split,
            task.spec.ignore_index,
            *task.head,
            **task.constants,
        )
    return together(statistics, task.head[0], task.reverse)


def together(statistics: Tensor, temperature: float, reverse: bool) -> Sums:
    """Of statistics (8, splits, N), whose maxima are those of each split."""
    highs_q, sums_q, highs_p, sums_p, hard, gap, known, target = statistics
    high_q, high_p = highs_q.amax(0), highs_p.amax(0)
    below_q, below_p = highs_q - high_q, highs_p - high_p
    lead, other = (below_q, below_p) if reverse else (below_p, below_q)
    sum_q, sum_p = (below_q.exp() * sums_q).sum(0), (below_p.exp() * sums_p).sum(0)
    shared = (lead.exp() * known).sum(0)
    apart = (lead.exp() * (gap + known * (lead - other))).sum(0)
    log_q, log_p, of_lead = sum_q.log(), sum_p.log(), sum_q if reverse else sum_p
    value = (apart - (log_q - log_p if reverse else log_p - log_q) * shared) / of_lead
    log_hard = ((below_q * temperature).exp() * hard).sum(0).log()
    cross_entropy = log_hard - (target.amax(0) - high_q * temperature)
    return Sums(high_q, log_q, high_p, log_p, log_hard, shared / of_lead, value, cross_entropy)


def gradient_of_hidden(task: Task, known: Tensor, factor: Tensor) -> Tensor:
    """Of the total times `factor`, (N, H); `known` is the first seven of `Sums`."""
    from worker.kernels.tiled_kernels import hidden_kernel  # as above

    rows, size = task.student.hidden.shape
    splits, of_a_split = task.split(len(task.student.weight))
    parts = torch.zeros((splits, rows, size), dtype=WIDE, device=known.device)
    with device_of(known):
        hidden_kernel[(-(-rows // ROWS), splits)](
            task.student.arguments,
            task.teacher.arguments,
            _labels(task),
            known,
            parts,
            rows,
            of_a_split,
            task.spec.ignore_index,
            *task.head,
            *task.factors,
            **task.constants,
        )
    return parts.sum(0).mul_(factor).to(task.student.hidden.dtype)


def gradients_of_head(task: Task, known: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Of the total times `factor`: (V, H) and (V,)."""
    from worker.kernels.tiled_kernels import weight_kernel  # as above

    weight = task.student.weight
    programs = min(processors(weight), -(-len(weight) // COLUMNS))
    scratch = torch.empty((programs, COLUMNS, weight.shape[1]), dtype=WIDE, device=known.device)
    of_weight, of_bias = torch.empty_like(weight), torch.empty_like(weight[:, 0])
    with device_of(known):
        weight_kernel[(programs,)](
            task.student.arguments,
            task.teacher.arguments,
            _labels(task),
            known,
            scratch,
            of_weight,
            of_bias,
            len(task.student.hidden),
            task.spec.ignore_index,
            *task.head,
            *task.factors,
            **task.constants,
        )
    return of_weight.mul_(factor), of_bias.mul_(factor)


def processors(tensor: Tensor) -> int:
    """Programs that the device of `tensor` works on at a time, at least."""
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 1


def _labels(task: Task) -> Tensor:
    return task.student.hidden if task.labels is None else task.labels.contiguous()
