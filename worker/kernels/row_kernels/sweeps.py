"""The passes of a program over the columns of its rows."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
from __future__ import annotations

import triton
import triton.language as tl

from worker.kernels.row_kernels.divergences import soft_column, starting_sums, summands
from worker.kernels.row_kernels.logits import NONE, load_logits, load_raw, log_sum


@triton.jit
def _sums(
    student, teacher, student_width, teacher_width, end, live, skipped, temperature, share,
    high_q, low_q, high_p, low_p, KIND: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Sums (R, 1) of `summands` over the columns up to `end`."""
    first = tl.zeros([R, B], tl.float32)
    second = tl.zeros([R, B], tl.float32)
    third = tl.zeros([R, B], tl.float32)
    for start in range(0, end, B):
        columns = start + tl.arange(0, B)[None, :]
        x, _ = load_logits(student, columns, student_width, live, skipped, temperature)
        y, _ = load_logits(teacher, columns, teacher_width, live, skipped, temperature)
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
    student, teacher, student_end, teacher_end, live, skipped, temperature, mismatch,
    KIND: tl.constexpr, THREE_PASSES: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Pass 1 of a divergence: log-sums of both sides, the student's masked columns, and those of both (R, 1)."""
    nothing = tl.zeros([R, 1], tl.float32)
    high_q, low_q, high_p, low_p, masked_q, masked_p = nothing, nothing, nothing, nothing, nothing, nothing
    if KIND != "logit-mse":
        high_q, low_q, masked_q = log_sum(student, student_end, live, skipped, temperature, THREE_PASSES, R, B)
        high_p, low_p, masked_p = log_sum(teacher, teacher_end, live, skipped, temperature, THREE_PASSES, R, B)
    return high_q, low_q, high_p, low_p, masked_q, masked_q + masked_p + mismatch


@triton.jit
def divergence_sums(
    student, teacher, student_width, teacher_width, end, live, skipped, temperature, share, delta,
    high_q, low_q, high_p, low_p, masked, KIND: tl.constexpr, CENTERED: tl.constexpr,
    R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Pass 2: `starting_sums` of the sums, which are not computed if they are known."""
    if KIND == "forward-kl" or KIND == "nkd" or KIND == "dkd":
        end = end * (tl.max(masked) > 0.0).to(tl.int32)
    first, second, third = _sums(
        student, teacher, student_width, teacher_width, end, live, skipped, temperature, share,
        high_q, low_q, high_p, low_p, KIND, R, B,
    )  # fmt: skip
    return starting_sums(first, second, third, masked, delta, KIND, CENTERED)


@triton.jit
def _smoothed_column(logits, log_q, offered):
    """Summand (R, B) of the evenly spread part in each column, and its gradient, before smoothing / count; `offered`
    (R, 1) is the number of columns that the student does not mask."""
    present = logits > NONE
    return tl.where(present, log_q, 0.0), offered * tl.exp(log_q) - present.to(tl.float32)


@triton.jit
def last_pass(
    student, teacher, student_width, teacher_width, end, inside, live, label, skipped, row_weight,
    temperature, share, factor, target_factor, divergence_weight, high_q, low_q, high_p, low_p,
    first, second, ahead, behind, at_target, per_rest, per_shared, hard_high, hard_low, hard, even, offered,
    KIND: tl.constexpr, HARD: tl.constexpr, SMOOTHED: tl.constexpr, GRADIENT: tl.constexpr,
    R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Sums (R, 1) of the divergence's values and of the evenly spread logs; writes the gradient.

    `hard` is the weight of the softmax at temperature 1 with the label, `even` with the evenly spread target.
    """
    values = tl.zeros([R, B], tl.float32)
    evens = tl.zeros([R, B], tl.float32)
    for start in range(0, end, B):
        columns = start + tl.arange(0, B)[None, :]
        logits = load_raw(student, columns, student_width, live)
        gradient = tl.zeros([R, B], tl.float32)
        if KIND != "":
            x = tl.where(columns == skipped, NONE, logits / temperature)
            y, _ = load_logits(teacher, columns, teacher_width, live, skipped, temperature)
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
                spread, slope = _smoothed_column(logits, log_q, offered)
                evens += spread
                gradient += even * slope
        if GRADIENT:
            gradient = tl.where(live, gradient * row_weight, 0.0)
            tl.store(student + columns, gradient, mask=inside & (columns < student_width))
    return tl.sum(values, axis=1, keep_dims=True), tl.sum(evens, axis=1, keep_dims=True)
