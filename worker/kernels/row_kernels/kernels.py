"""The kernel of a row loss, and the one that scales its gradient."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
from __future__ import annotations

import triton
import triton.language as tl

from worker.kernels.row_kernels.divergences import binary
from worker.kernels.row_kernels.logits import NONE, live_rows, log_sum, logit_at
from worker.kernels.row_kernels.sweeps import divergence_sums, last_pass, log_sums


@triton.jit
def _row_weight(weights, row, inside, WEIGHTED: tl.constexpr, R: tl.constexpr):
    """Factor of each row's gradient (R, 1)."""
    weight = tl.zeros([R, 1], tl.float32) + 1.0
    if WEIGHTED:
        weight = tl.load(weights + row, mask=inside, other=0.0).to(tl.float32)
    return weight


@triton.jit
def row_kernel(
    student_pointer, teacher_pointer, labels, row_weights, divergences, cross_entropies,
    rows, student_width, teacher_width, student_stride, teacher_stride, ignore_index, temperature,
    share, delta, factor, target_factor, divergence_weight, ce_weight, smoothing,
    KIND: tl.constexpr, CENTERED: tl.constexpr, CE: tl.constexpr, SMOOTHED: tl.constexpr,
    ONE_SOFTMAX: tl.constexpr, LABELLED: tl.constexpr, ROW_WEIGHTED: tl.constexpr,
    GRADIENT: tl.constexpr, THREE_PASSES: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """See the package. KIND "": no divergence; CE: whether there is a cross-entropy.

    ONE_SOFTMAX: divergence and cross-entropy use the same softmax of the student.
    """
    HARD: tl.constexpr = CE or KIND == "nkd"
    row, inside, live, label = live_rows(labels, rows, ignore_index, LABELLED, R)
    student = student_pointer + row.to(tl.int64) * student_stride
    teacher = teacher_pointer + row.to(tl.int64) * teacher_stride
    any_live = tl.max(live.to(tl.int32))
    end = student_width * any_live
    teacher_end = teacher_width * any_live
    nowhere = tl.zeros([R, 1], tl.int64) - 1
    skipped = label if KIND == "nkd" or KIND == "dkd" else nowhere
    x_target = logit_at(student, label, student_width, live)

    nothing = tl.zeros([R, 1], tl.float32)
    high_q, low_q, high_p, low_p, masked_q = nothing, nothing, nothing, nothing, nothing
    first, second, ahead, behind, y_target = nothing, nothing, nothing, nothing, nothing
    if KIND != "":
        mismatch = tl.where(student_width == teacher_width, 0.0, 1.0)
        y_target = logit_at(teacher, label, teacher_width, live)
        high_q, low_q, high_p, low_p, masked_q, masked = log_sums(
            student, teacher, end, teacher_end, live, skipped, temperature, mismatch, KIND, THREE_PASSES, R, B
        )
        first, second, ahead, behind = divergence_sums(
            student, teacher, student_width, teacher_width, end, live, skipped, temperature, share, delta,
            high_q, low_q, high_p, low_p, masked, KIND, CENTERED, R, B,
        )  # fmt: skip
    at_target, per_rest, per_shared, divergence = nothing, nothing, nothing, nothing
    if KIND == "dkd":
        divergence, at_target, per_rest, per_shared = binary(
            x_target / temperature, y_target / temperature, high_q, low_q, high_p, low_p, second, -first
        )
        divergence = target_factor * divergence

    hard_high, hard_low, hard, log_target = high_q, low_q, nothing, nothing
    cross_entropy, even, offered = nothing, nothing, nothing
    if HARD:
        if not ONE_SOFTMAX:
            hard_high, hard_low, masked_q = log_sum(student, end, live, nowhere, 1.0, THREE_PASSES, R, B)
        log_target = (x_target - hard_high) - hard_low
    if KIND == "nkd":
        high, low, _ = log_sum(teacher, teacher_end, live, nowhere, 1.0, THREE_PASSES, R, B)
        p_target = tl.exp((y_target - high) - low)
        divergence = tl.where(p_target > 0.0, -p_target * log_target, 0.0)
        hard += divergence_weight * p_target
    if CE:
        known = live & (label >= 0) & (label < student_width)
        cross_entropy = (smoothing - 1.0) * tl.where(known, log_target, NONE)
        hard += ce_weight * (1.0 - smoothing) * known.to(tl.float32)
    if SMOOTHED:
        offered = student_width - masked_q
        even = smoothing / tl.maximum(offered, 1.0)

    row_weight = _row_weight(row_weights, row, inside, ROW_WEIGHTED, R)
    tl.debug_barrier()  # every warp has read its labels' logits before any of them is overwritten
    value, spread = last_pass(
        student, teacher, student_width, teacher_width, student_width if GRADIENT else end,
        inside, live, label, skipped, row_weight, temperature, share, factor, target_factor,
        divergence_weight, high_q, low_q, high_p, low_p, first, second, ahead, behind, at_target, per_rest, per_shared,
        hard_high, hard_low, hard, ce_weight * even, offered,
        KIND, HARD, SMOOTHED, GRADIENT, R, B,
    )  # fmt: skip
    if KIND != "":
        tl.store(divergences + row, tl.where(live, divergence + factor * value, 0.0), mask=inside)
    if CE:
        tl.store(cross_entropies + row, tl.where(live, cross_entropy - even * spread, 0.0), mask=inside)


@triton.jit
def scale_kernel(pointer, factors, width, stride, B: tl.constexpr):
    """Multiply a row by its factor, unless that is 1."""
    row = tl.program_id(0)
    factor = tl.load(factors + row).to(tl.float32)
    start_of_row = pointer + row.to(tl.int64) * stride
    for start in range(0, tl.where(factor == 1.0, 0, width), B):
        columns = start + tl.arange(0, B)
        inside = columns < width
        numbers = tl.load(start_of_row + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(start_of_row + columns, numbers * factor, mask=inside)
