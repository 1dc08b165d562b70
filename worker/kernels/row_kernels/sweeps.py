"""What a program does in each pass over the columns of its rows."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
from __future__ import annotations

import triton
import triton.language as tl

from worker.kernels.row_kernels.divergences import soft_column, starting_sums, summands
from worker.kernels.row_kernels.logits import NONE, headed, load_logits, load_raw, log_sum


@triton.jit
def _sums(
    student, teacher, student_width, teacher_width, end, live, skipped, temperature, scale, cap, share,
    high_q, low_q, high_p, low_p, KIND: tl.constexpr, CAPPED: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Sums (R, 1) of `summands` over the columns up to `end`."""
    first = tl.zeros([R, B], tl.float32)
    second = tl.zeros([R, B], tl.float32)
    third = tl.zeros([R, B], tl.float32)
    for start in range(0, end, B):
        columns = start + tl.arange(0, B)[None, :]
        x, _ = load_logits(student, columns, student_width, live, skipped, temperature, scale, cap, CAPPED)
        y, _ = load_logits(teacher, columns, teacher_width, live, skipped, temperature, scale, cap, CAPPED)
        a, b, c = summands(x, y, high_q, low_q, high_p, low_p, share, KIND)
        first += a
        second += b
        third += c
    return (
        tl.sum(first, axis=1, keep_dims=True),
        tl.sum(second, axis=1, keep_dims=True),
        tl.sum(third, axis=1, keep_dims=True),
    )


@triton.jit
def log_sums(
    student, teacher, student_end, teacher_end, live, skipped, temperature, scale, cap, mismatch,
    KIND: tl.constexpr, CAPPED: tl.constexpr, THREE_PASSES: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Pass 1 of a divergence: log-sums of both sides, the student's masked columns, and those of both (R, 1)."""
    nothing = tl.zeros([R, 1], tl.float32)
    high_q, low_q, high_p, low_p, masked_q, masked_p = nothing, nothing, nothing, nothing, nothing, nothing
    if KIND != "logit-mse":
        high_q, low_q, masked_q = log_sum(
            student, student_end, live, skipped, temperature, scale, cap, CAPPED, THREE_PASSES, R, B
        )
        high_p, low_p, masked_p = log_sum(
            teacher, teacher_end, live, skipped, temperature, scale, cap, CAPPED, THREE_PASSES, R, B
        )
    return high_q, low_q, high_p, low_p, masked_q, masked_q + masked_p + mismatch


@triton.jit
def divergence_sums(
    student, teacher, student_width, teacher_width, end, live, skipped, temperature, scale, cap, share, delta,
    high_q, low_q, high_p, low_p, masked, KIND: tl.constexpr, CENTERED: tl.constexpr, CAPPED: tl.constexpr,
    R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Pass 2: what `starting_sums` makes of the sums, which aren't looked for where they are known."""
    if KIND == "forward-kl" or KIND == "nkd" or KIND == "dkd":
        end = end * (tl.max(masked) > 0.0).to(tl.int32)
    first, second, third = _sums(
        student, teacher, student_width, teacher_width, end, live, skipped, temperature, scale, cap, share,
        high_q, low_q, high_p, low_p, KIND, CAPPED, R, B,
    )  # fmt: skip
    return starting_sums(first, second, third, masked, delta, KIND, CENTERED)


@triton.jit
def class_weight_sum(weights, row, width, live, WEIGHTED: tl.constexpr, R: tl.constexpr, B: tl.constexpr):
    """Sum (R, 1) of the class weights over the columns that the student does not mask."""
    total = tl.zeros([R, B], tl.float32)
    for start in range(0, width, B):
        columns = start + tl.arange(0, B)[None, :]
        total += _weights(weights, columns, width, load_raw(row, columns, width, live), WEIGHTED)
    return tl.sum(total, axis=1, keep_dims=True)


@triton.jit
def _weights(weights, columns, width, raw, WEIGHTED: tl.constexpr):
    """Class weights (R, B) of the columns that the student does not mask, else 0."""
    weight = tl.zeros_like(raw) + 1.0
    if WEIGHTED:
        weight = weight * tl.load(weights + columns, mask=columns < width, other=0.0).to(tl.float32)
    return tl.where(raw > NONE, weight, 0.0)


@triton.jit
def label_weight(weights, label, width, live, WEIGHTED: tl.constexpr):
    """Weight (R, 1) of the label's class, and whether it is a class of the student's."""
    known = live & (label >= 0) & (label < width)
    weight = known.to(tl.float32)
    if WEIGHTED:
        weight = tl.load(weights + label, mask=known, other=0.0).to(tl.float32)
    return weight, known


@triton.jit
def _smoothed_column(weights, columns, width, raw, log_q, weight_sum, WEIGHTED: tl.constexpr):
    """What each column (R, B) adds to the evenly spread part, and its gradient, before smoothing / count."""
    weight = _weights(weights, columns, width, raw, WEIGHTED)
    return tl.where(raw > NONE, weight * log_q, 0.0), weight_sum * tl.exp(log_q) - weight


@triton.jit
def last_pass(
    student, teacher, class_weights, student_width, teacher_width, end, inside, live, label, skipped, row_weight,
    temperature, scale, cap, share, factor, target_factor, divergence_weight, high_q, low_q, high_p, low_p,
    first, second, ahead, behind, at_target, per_rest, per_shared, hard_high, hard_low, hard, even, weight_sum,
    KIND: tl.constexpr, CAPPED: tl.constexpr, HARD: tl.constexpr, SMOOTHED: tl.constexpr,
    CLASS_WEIGHTED: tl.constexpr, GRADIENT: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Sums (R, 1) of the divergence's values and of the evenly spread logs; writes the gradient.

    `hard` weighs the softmax at temperature 1 against the label, `even` against the evenly spread target.
    """
    values = tl.zeros([R, B], tl.float32)
    evens = tl.zeros([R, B], tl.float32)
    for start in range(0, end, B):
        columns = start + tl.arange(0, B)[None, :]
        raw = load_raw(student, columns, student_width, live)
        logits, head_slope = headed(raw, scale, cap, CAPPED)
        gradient = tl.zeros([R, B], tl.float32)
        if KIND != "":
            x = tl.where(columns == skipped, NONE, logits / temperature)
            y, _ = load_logits(teacher, columns, teacher_width, live, skipped, temperature, scale, cap, CAPPED)
            value, gradient, q, shared = soft_column(
                x, y, high_q, low_q, high_p, low_p, share, first, second, ahead, behind, temperature, KIND
            )
            values += value
            gradient = gradient * factor
            if KIND == "dkd":
                rest = q * (per_rest - tl.where(shared, per_shared, 0.0))
                gradient += target_factor * tl.where(columns == label, at_target, rest) / temperature
            gradient = gradient * divergence_weight
        if HARD:
            log_q = (logits - hard_high) - hard_low
            gradient += hard * (tl.exp(log_q) - (columns == label).to(tl.float32))
            if SMOOTHED:
                spread, slope = _smoothed_column(
                    class_weights, columns, student_width, raw, log_q, weight_sum, CLASS_WEIGHTED
                )
                evens += spread
                gradient += even * slope
        if GRADIENT:
            gradient = tl.where(live, gradient * head_slope * row_weight, 0.0)
            tl.store(student + columns, gradient, mask=inside & (columns < student_width))
    return tl.sum(values, axis=1, keep_dims=True), tl.sum(evens, axis=1, keep_dims=True)
