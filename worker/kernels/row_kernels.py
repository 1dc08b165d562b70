"""The row kernel in Triton: one launch reads the logits of both sides, and writes losses and the student's gradient.

A program owns some rows and goes over their columns in blocks, three times at most:

1. what each softmax divides by, one side after the other (`_log_sum`);
2. sums that the gradient needs before its first column (`_sums`); left out where they are known, as for forward KL;
3. values and gradient of every column, written where the student's logit was read.

Short rows stay in the first-level cache between the passes. Pass 1 needs no pass for the maximum before it: every
exponential is a mantissa times a power of two and both are summed apart (arXiv 2001.04438). The logarithm of such a sum
is kept in two parts too, so that logits of ±1e4 lose nothing when it is taken from them.

Pass 3 computes, with q the student's softmax, gradient = slope - q sum(slope), where slope is the derivative of the
value to log q. Columns masked on either side (`shared` false) have no value, but stay in their own side's softmax.

Names: R rows and B columns of a block; `student` and `teacher` are pointers (R, 1) to the rows' first columns. All of
it is float32. Kept apart from `worker.kernels.rows` because Triton is not there on every machine.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.kernels.plan import plan
from worker.kernels.spec import Divergence, RowSpec

if TYPE_CHECKING:
    from worker.kernels.rows import Inputs

LOG2_E = tl.constexpr(1.4426950408889634)
LN2_HIGH = tl.constexpr(0.693359375)
"""ln 2 in two parts: 9 bits, whose product with an exponent below 2^15 is exact, and the rest."""
LN2_LOW = tl.constexpr(-2.1219444005469057e-4)
ROUND = tl.constexpr(12582912.0)
"""1.5 * 2^23: adding it rounds a float32 to an integer, which then stands in its lowest bits."""
FLOOR = tl.constexpr(-1e9)
"""Log of what counts as no probability, as in `worker.losses.softened`."""
NONE = tl.constexpr(-float("inf"))

MOST_COLUMNS = 2048
"""Of a block: a wider one spills registers, because every lane holds a sum of its own."""
MOST_ROWS = 16
LOGITS_OF_A_WARP = 256
"""Eight for each lane: twice as many take all 255 registers."""


@triton.jit
def _power(exponent):
    """2^exponent of integers up to 0, without the unit for exponentials; 0 below -126."""
    biased = tl.maximum(exponent, -127.0) + 127.0 + ROUND
    return (biased.to(tl.int32, bitcast=True) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _split(x):
    """exp(x) as mantissa in [0.7, 1.42] and exponent; 0 and the lowest one where x is -inf."""
    masked = x == NONE
    finite = tl.where(masked, 0.0, x)
    exponent = (finite * LOG2_E + ROUND) - ROUND
    mantissa = tl.exp((finite - exponent * LN2_HIGH) - exponent * LN2_LOW)
    return tl.where(masked, 0.0, mantissa), tl.where(masked, FLOOR, exponent)


@triton.jit
def _head_tanh(scaled, cap):
    """tanh(scaled / cap), and 1 minus its square."""
    small = tl.exp(-2.0 * tl.abs(scaled) / cap)
    size = (1.0 - small) / (1.0 + small)
    return tl.where(scaled < 0.0, -size, size), 4.0 * small / ((1.0 + small) * (1.0 + small))


@triton.jit
def _headed(raw, scale, cap, CAPPED: tl.constexpr):
    """Logits of a head, and their derivative to the raw ones; what is masked stays masked."""
    logits = raw * scale
    slope = tl.zeros_like(raw) + scale
    if CAPPED:
        bounded, flat = _head_tanh(logits, cap)
        logits = tl.where(raw == NONE, NONE, bounded * cap)
        slope = slope * flat
    return logits, slope


@triton.jit
def _load(row, columns, width, live):
    """Raw logits (R, B); -inf beyond the width and in rows that are ignored."""
    return tl.load(row + columns, mask=live & (columns < width), other=NONE).to(tl.float32)


@triton.jit
def _logits(row, columns, width, live, skipped, temperature, scale, cap, CAPPED: tl.constexpr):
    """Logits (R, B) at the temperature, without the column `skipped`, and whether each is masked in itself."""
    raw = _load(row, columns, width, live)
    logits, _ = _headed(raw, scale, cap, CAPPED)
    return tl.where(columns == skipped, NONE, logits / temperature), (raw == NONE) & (columns < width) & live


@triton.jit
def _log_sum(
    row, width, live, skipped, temperature, scale, cap,
    CAPPED: tl.constexpr, THREE_PASSES: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """log sum exp of each row in two parts (R, 1), and how many columns are masked.

    Where nothing is left to sum: 0 and FLOOR.
    """
    mantissas = tl.zeros([R, B], tl.float32)
    exponents = tl.zeros([R, B], tl.float32) + FLOOR
    masked = tl.zeros([R, B], tl.float32)
    if THREE_PASSES:
        for start in range(0, width, B):
            columns = start + tl.arange(0, B)[None, :]
            logits, hidden = _logits(row, columns, width, live, skipped, temperature, scale, cap, CAPPED)
            exponents = tl.maximum(exponents, logits)
            masked += hidden.to(tl.float32)
        high = tl.max(exponents, axis=1, keep_dims=True)
        for start in range(0, width, B):
            columns = start + tl.arange(0, B)[None, :]
            logits, _ = _logits(row, columns, width, live, skipped, temperature, scale, cap, CAPPED)
            mantissas += tl.exp(logits - high)
        low = tl.zeros_like(high)
        total = tl.sum(mantissas, axis=1, keep_dims=True)
    else:
        for start in range(0, width, B):
            columns = start + tl.arange(0, B)[None, :]
            logits, hidden = _logits(row, columns, width, live, skipped, temperature, scale, cap, CAPPED)
            mantissa, exponent = _split(logits)
            top = tl.maximum(exponents, exponent)
            mantissas = mantissas * _power(exponents - top) + mantissa * _power(exponent - top)
            exponents = top
            masked += hidden.to(tl.float32)
        top = tl.max(exponents, axis=1, keep_dims=True)
        total = tl.sum(mantissas * _power(exponents - top), axis=1, keep_dims=True)
        high = top * LN2_HIGH
        low = top * LN2_LOW
    empty = total == 0.0
    low = tl.where(empty, FLOOR, low + tl.log(tl.where(empty, 1.0, total)))
    return tl.where(empty, 0.0, high), low, tl.sum(masked, axis=1, keep_dims=True)


@triton.jit
def _softplus(x):
    """log(1 + exp(x))."""
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _mixture(gap, share):
    """log(share p + (1 - share) q) - log q, where `gap` is log p - log q; `share` lies between 0 and 1."""
    larger = tl.where(gap > 0.0, share, 1.0 - share)
    return tl.maximum(gap, 0.0) + tl.log(larger + (1.0 - larger) * tl.exp(-tl.abs(gap)))


@triton.jit
def _forward(q, p, gap, shared, share, KIND: tl.constexpr):
    """Value and slope of forward KL, to a mixture for `skew-kl`."""
    value = p * gap
    slope = -p
    if KIND == "skew-kl":
        mixed = _mixture(gap, share)
        value = p * (gap - mixed)
        slope = (share - 1.0) * p * tl.exp(-mixed)
    return value, slope


@triton.jit
def _reverse(q, p, gap, shared, share, KIND: tl.constexpr):
    """Value and slope of reverse KL, to a mixture for `skew-reverse-kl`; the slope lacks a multiple of all q.

    Such a multiple has no part in the gradient, and is left out so that equal sides have none at all.
    """
    value = -q * gap
    slope = tl.where(shared, value, -q)
    if KIND == "skew-reverse-kl":
        mixed = _mixture(gap, 1.0 - share)
        value = -q * mixed
        rest = (1.0 - share) * (tl.exp(gap - mixed) - 1.0)
        slope = tl.where(shared, value + q * rest, (share - 1.0) * q)
    return value, slope


@triton.jit
def _value_and_slope(q, p, log_q, log_p, shared, share, ahead, behind, KIND: tl.constexpr):
    """Of each column (R, B): what it adds to the divergence, and the derivative of the sum to log q.

    `q` is the student's own; `p`, `log_q` and `log_p` are 0 where a column is not shared. `ahead` and `behind` (R, 1)
    weigh forward and reverse KL in `bd-kd`.
    """
    gap = log_p - log_q
    if KIND == "jsd":
        common = tl.where(shared, q, 0.0)
        mixed = _mixture(gap, share)
        slope = (share - 1.0) * common * mixed
        value = share * p * (gap - mixed) + slope
    elif KIND == "tvd":
        common = tl.where(shared, q, 0.0)
        value = 0.5 * tl.abs(p - common)
        slope = 0.5 * common * ((common > p).to(tl.float32) - (common < p).to(tl.float32))
    elif KIND == "nkd":
        value = -p * log_q
        slope = -p
    elif KIND == "bd-kd":
        forward, forward_slope = _forward(q, p, gap, shared, share, KIND)
        reverse, reverse_slope = _reverse(q, p, gap, shared, share, KIND)
        value = ahead * forward + behind * reverse
        slope = ahead * forward_slope + behind * reverse_slope
    elif KIND == "reverse-kl" or KIND == "skew-reverse-kl":
        value, slope = _reverse(q, p, gap, shared, share, KIND)
    else:
        value, slope = _forward(q, p, gap, shared, share, KIND)
    return value, slope


@triton.jit
def _distributions(x, y, high_q, low_q, high_p, low_p):
    """q, p, log q, log p and which columns are shared, from logits (R, B) and the parts of their log-sums."""
    log_q = (x - high_q) - low_q
    log_p = (y - high_p) - low_p
    shared = (x > NONE) & (y > NONE)
    q = tl.exp(log_q)
    p = tl.where(shared, tl.exp(log_p), 0.0)
    return q, p, tl.where(shared, log_q, 0.0), tl.where(shared, log_p, 0.0), shared


@triton.jit
def _summands(x, y, high_q, low_q, high_p, low_p, share, KIND: tl.constexpr):
    """Three numbers of each column whose sums the last pass begins with.

    `logit-mse`: the gap, whether it is shared, 0. `bd-kd`: p, slope of reverse KL, share in the gap of the entropies
    H(q) - H(p). Else: slope, q where it is shared, 0.
    """
    q, p, log_q, log_p, shared = _distributions(x, y, high_q, low_q, high_p, low_p)
    common = tl.where(shared, q, 0.0)
    nothing = tl.zeros_like(x)
    if KIND == "logit-mse":
        first, second, third = tl.where(shared, x - y, 0.0), shared.to(tl.float32), nothing
    elif KIND == "bd-kd":
        _, second = _reverse(q, p, log_p - log_q, shared, share, KIND)
        first, third = p, p * log_p - common * log_q
    else:
        _, first = _value_and_slope(q, p, log_q, log_p, shared, share, 1.0, 1.0, KIND)
        second, third = common, nothing
    return first, second, third


@triton.jit
def _sums(
    student, teacher, student_width, teacher_width, end, live, skipped, temperature, scale, cap, share,
    high_q, low_q, high_p, low_p, KIND: tl.constexpr, CAPPED: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Sums (R, 1) of `_summands` over the columns up to `end`."""
    first = tl.zeros([R, B], tl.float32)
    second = tl.zeros([R, B], tl.float32)
    third = tl.zeros([R, B], tl.float32)
    for start in range(0, end, B):
        columns = start + tl.arange(0, B)[None, :]
        x, _ = _logits(student, columns, student_width, live, skipped, temperature, scale, cap, CAPPED)
        y, _ = _logits(teacher, columns, teacher_width, live, skipped, temperature, scale, cap, CAPPED)
        a, b, c = _summands(x, y, high_q, low_q, high_p, low_p, share, KIND)
        first += a
        second += b
        third += c
    return (
        tl.sum(first, axis=1, keep_dims=True),
        tl.sum(second, axis=1, keep_dims=True),
        tl.sum(third, axis=1, keep_dims=True),
    )


@triton.jit
def _binary(x_target, y_target, high_q, low_q, high_p, low_p, kept_q, kept_p):
    """Target against rest (DKD): its value, and what its gradient is made of (R, 1).

    The log-sums are those of the other classes, of which a share `kept` is not masked by the other side.
    """
    ahead_q = tl.maximum((x_target - high_q) - low_q, FLOOR)
    ahead_p = tl.maximum((y_target - high_p) - low_p, FLOOR)
    shared = (x_target > NONE) & (y_target > NONE)
    p_target = tl.where(shared, tl.exp(-_softplus(-ahead_p)), 0.0)
    log_rest_q = -_softplus(ahead_q) + tl.log(tl.maximum(kept_q, 1e-37))
    log_rest_p = -_softplus(ahead_p) + tl.log(tl.maximum(kept_p, 1e-37))
    p_rest = tl.exp(log_rest_p)
    value = p_target * (_softplus(-ahead_q) - _softplus(-ahead_p)) + p_rest * (log_rest_p - log_rest_q)
    both = p_target + p_rest
    at_target = tl.exp(-_softplus(-ahead_q)) * both - p_target
    return value, at_target, tl.exp(-_softplus(ahead_q)) * both, p_rest / tl.maximum(kept_q, 1e-37)


@triton.jit
def _at(row, label, width, live, scale, cap, CAPPED: tl.constexpr):
    """The logit (R, 1) of the label; -inf where it is no column of this side."""
    raw = tl.load(row + label, mask=live & (label >= 0) & (label < width), other=NONE).to(tl.float32)
    logits, _ = _headed(raw, scale, cap, CAPPED)
    return logits


@triton.jit
def _weight_sum(weights, row, width, live, WEIGHTED: tl.constexpr, R: tl.constexpr, B: tl.constexpr):
    """Sum (R, 1) of the class weights over the columns that the student does not mask."""
    total = tl.zeros([R, B], tl.float32)
    for start in range(0, width, B):
        columns = start + tl.arange(0, B)[None, :]
        total += _weights(weights, columns, width, _load(row, columns, width, live), WEIGHTED)
    return tl.sum(total, axis=1, keep_dims=True)


@triton.jit
def _weights(weights, columns, width, raw, WEIGHTED: tl.constexpr):
    """Class weights (R, B) of the columns that the student does not mask, else 0."""
    weight = tl.zeros_like(raw) + 1.0
    if WEIGHTED:
        weight = weight * tl.load(weights + columns, mask=columns < width, other=0.0).to(tl.float32)
    return tl.where(raw > NONE, weight, 0.0)


@triton.jit
def _starting_sums(first, second, third, masked, delta, KIND: tl.constexpr, CENTERED: tl.constexpr):
    """What the last pass begins with (R, 1): sum of the slopes, share of q that is shared, `ahead`, `behind`.

    For `logit-mse`: the mean gap and the count of columns. Where nothing is masked, probabilities add up to 1 exactly.
    """
    ahead = tl.zeros_like(first) + 1.0
    behind = ahead
    if KIND == "logit-mse":
        second = tl.maximum(second, 1.0)
        first = first / second if CENTERED else first * 0.0
    elif KIND == "bd-kd":
        ahead = tl.where(third < 0.0, delta, 1.0)
        behind = tl.where(third < 0.0, 1.0, delta)
        first = behind * second - ahead * tl.where(masked == 0.0, 1.0, first)
    elif KIND == "forward-kl" or KIND == "nkd" or KIND == "dkd":
        first = tl.where(masked == 0.0, -1.0, first)
        second = tl.where(masked == 0.0, 1.0, second)
    return first, second, ahead, behind


@triton.jit
def _soft_column(
    x, y, high_q, low_q, high_p, low_p, share, first, second, ahead, behind, temperature,
    KIND: tl.constexpr,
):  # fmt: skip
    """Value and gradient (R, B) to the logits at temperature 1, without factors."""
    q, p, log_q, log_p, shared = _distributions(x, y, high_q, low_q, high_p, low_p)
    if KIND == "logit-mse":
        gap = tl.where(shared, (x - y) - first, 0.0)
        value = 0.5 * gap * gap / second
        gradient = gap / second
    else:
        value, slope = _value_and_slope(q, p, log_q, log_p, shared, share, ahead, behind, KIND)
        gradient = (slope - q * first) / temperature
    return value, gradient, q, shared


@triton.jit
def _log_sums(
    student, teacher, student_end, teacher_end, live, skipped, temperature, scale, cap, mismatch,
    KIND: tl.constexpr, CAPPED: tl.constexpr, THREE_PASSES: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Pass 1 of a divergence: log-sums of both sides, the student's masked columns, and those of both (R, 1)."""
    nothing = tl.zeros([R, 1], tl.float32)
    high_q, low_q, high_p, low_p, masked_q, masked_p = nothing, nothing, nothing, nothing, nothing, nothing
    if KIND != "logit-mse":
        high_q, low_q, masked_q = _log_sum(
            student, student_end, live, skipped, temperature, scale, cap, CAPPED, THREE_PASSES, R, B
        )
        high_p, low_p, masked_p = _log_sum(
            teacher, teacher_end, live, skipped, temperature, scale, cap, CAPPED, THREE_PASSES, R, B
        )
    return high_q, low_q, high_p, low_p, masked_q, masked_q + masked_p + mismatch


@triton.jit
def _label_weight(weights, label, width, live, WEIGHTED: tl.constexpr):
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
def _last_pass(
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
        raw = _load(student, columns, student_width, live)
        logits, head_slope = _headed(raw, scale, cap, CAPPED)
        gradient = tl.zeros([R, B], tl.float32)
        if KIND != "":
            x = tl.where(columns == skipped, NONE, logits / temperature)
            y, _ = _logits(teacher, columns, teacher_width, live, skipped, temperature, scale, cap, CAPPED)
            value, gradient, q, shared = _soft_column(
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


@triton.jit
def _divergence_sums(
    student, teacher, student_width, teacher_width, end, live, skipped, temperature, scale, cap, share, delta,
    high_q, low_q, high_p, low_p, masked, KIND: tl.constexpr, CENTERED: tl.constexpr, CAPPED: tl.constexpr,
    R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Pass 2: what `_starting_sums` makes of the sums, which aren't looked for where they are known."""
    if KIND == "forward-kl" or KIND == "nkd" or KIND == "dkd":
        end = end * (tl.max(masked) > 0.0).to(tl.int32)
    first, second, third = _sums(
        student, teacher, student_width, teacher_width, end, live, skipped, temperature, scale, cap, share,
        high_q, low_q, high_p, low_p, KIND, CAPPED, R, B,
    )  # fmt: skip
    return _starting_sums(first, second, third, masked, delta, KIND, CENTERED)


@triton.jit
def _live_rows(labels, rows, ignore_index, LABELLED: tl.constexpr, R: tl.constexpr):
    """Numbers of this program's rows (R, 1), whether they exist, whether they count, and their labels or -1."""
    row = tl.program_id(0) * R + tl.arange(0, R)[:, None]
    inside = row < rows
    live = inside
    label = tl.zeros([R, 1], tl.int64) - 1
    if LABELLED:
        label = tl.load(labels + row, mask=inside, other=0).to(tl.int64)
        live = inside & (label != ignore_index)
    return row, inside, live, label


@triton.jit
def _row_weight(weights, row, inside, WEIGHTED: tl.constexpr, R: tl.constexpr):
    """What each row's gradient is multiplied by (R, 1)."""
    weight = tl.zeros([R, 1], tl.float32) + 1.0
    if WEIGHTED:
        weight = tl.load(weights + row, mask=inside, other=0.0).to(tl.float32)
    return weight


@triton.jit
def row_kernel(
    student_pointer, teacher_pointer, labels, class_weights, row_weights, divergences, cross_entropies,
    rows, student_width, teacher_width, student_stride, teacher_stride, ignore_index, temperature, scale, cap,
    share, delta, factor, target_factor, divergence_weight, ce_weight, smoothing,
    KIND: tl.constexpr, CENTERED: tl.constexpr, CAPPED: tl.constexpr, CE: tl.constexpr, SMOOTHED: tl.constexpr,
    ONE_SOFTMAX: tl.constexpr, LABELLED: tl.constexpr, CLASS_WEIGHTED: tl.constexpr, ROW_WEIGHTED: tl.constexpr,
    GRADIENT: tl.constexpr, THREE_PASSES: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """See the module. KIND "" leaves the divergence out, CE the cross-entropy.

    ONE_SOFTMAX: the divergence's softmax of the student is also that of the label.
    """
    HARD: tl.constexpr = CE or KIND == "nkd"
    row, inside, live, label = _live_rows(labels, rows, ignore_index, LABELLED, R)
    student = student_pointer + row.to(tl.int64) * student_stride
    teacher = teacher_pointer + row.to(tl.int64) * teacher_stride
    any_live = tl.max(live.to(tl.int32))
    end = student_width * any_live
    teacher_end = teacher_width * any_live
    nowhere = tl.zeros([R, 1], tl.int64) - 1
    skipped = label if KIND == "nkd" or KIND == "dkd" else nowhere
    x_target = _at(student, label, student_width, live, scale, cap, CAPPED)

    nothing = tl.zeros([R, 1], tl.float32)
    high_q, low_q, high_p, low_p, masked_q = nothing, nothing, nothing, nothing, nothing
    first, second, ahead, behind, y_target = nothing, nothing, nothing, nothing, nothing
    if KIND != "":
        mismatch = tl.where(student_width == teacher_width, 0.0, 1.0)
        y_target = _at(teacher, label, teacher_width, live, scale, cap, CAPPED)
        high_q, low_q, high_p, low_p, masked_q, masked = _log_sums(
            student, teacher, end, teacher_end, live, skipped, temperature, scale, cap, mismatch,
            KIND, CAPPED, THREE_PASSES, R, B,
        )  # fmt: skip
        first, second, ahead, behind = _divergence_sums(
            student, teacher, student_width, teacher_width, end, live, skipped, temperature, scale, cap, share, delta,
            high_q, low_q, high_p, low_p, masked, KIND, CENTERED, CAPPED, R, B,
        )  # fmt: skip
    at_target, per_rest, per_shared, divergence = nothing, nothing, nothing, nothing
    if KIND == "dkd":
        divergence, at_target, per_rest, per_shared = _binary(
            x_target / temperature, y_target / temperature, high_q, low_q, high_p, low_p, second, -first
        )
        divergence = target_factor * divergence

    hard_high, hard_low, hard, log_target = high_q, low_q, nothing, nothing
    cross_entropy, even, weight_sum = nothing, nothing, nothing
    if HARD:
        if not ONE_SOFTMAX:
            hard_high, hard_low, masked_q = _log_sum(
                student, end, live, nowhere, 1.0, scale, cap, CAPPED, THREE_PASSES, R, B
            )
        log_target = (x_target - hard_high) - hard_low
    if KIND == "nkd":
        high, low, _ = _log_sum(
            teacher, teacher_end, live, nowhere, 1.0, scale, cap, CAPPED, THREE_PASSES, R, B
        )  # fmt: skip
        p_target = tl.exp((y_target - high) - low)
        divergence = tl.where(p_target > 0.0, -p_target * log_target, 0.0)
        hard += divergence_weight * p_target
    if CE:
        weight, known = _label_weight(class_weights, label, student_width, live, CLASS_WEIGHTED)
        cross_entropy = (smoothing - 1.0) * tl.where(known, weight * log_target, NONE)
        hard += ce_weight * (1.0 - smoothing) * weight
    if SMOOTHED:
        weight_sum = _weight_sum(class_weights, student, end, live, CLASS_WEIGHTED, R, B)
        even = smoothing / tl.maximum(student_width - masked_q, 1.0)

    row_weight = _row_weight(row_weights, row, inside, ROW_WEIGHTED, R)
    tl.debug_barrier()  # every warp has read its labels' logits before any of them is overwritten
    value, spread = _last_pass(
        student, teacher, class_weights, student_width, teacher_width, student_width if GRADIENT else end,
        inside, live, label, skipped, row_weight, temperature, scale, cap, share, factor, target_factor,
        divergence_weight, high_q, low_q, high_p, low_p, first, second, ahead, behind, at_target, per_rest, per_shared,
        hard_high, hard_low, hard, ce_weight * even, weight_sum,
        KIND, CAPPED, HARD, SMOOTHED, CLASS_WEIGHTED, GRADIENT, R, B,
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


def launch(inputs: Inputs, spec: RowSpec, gradient: bool, three_passes: bool = False) -> tuple[Tensor, Tensor]:
    """Divergence and cross-entropy (R,) of inputs that were checked; with `gradient`, the student's logits become it.

    `three_passes` looks for the maximum before summing, as is usual; there to be compared with.
    """
    student, teacher, labels, class_weights, row_weights = inputs
    planned, divergence = plan(spec), spec.divergence or Divergence("forward-kl")
    temperature = 1.0 if planned.kind == "logit-mse" else divergence.temperature
    rows, width = student.shape
    other = student if teacher is None or not planned.kind else _in_rows(teacher)
    block = min(triton.next_power_of_2(width), MOST_COLUMNS)
    together = min(MOST_ROWS, MOST_COLUMNS // block, triton.next_power_of_2(rows))
    losses = torch.zeros(2, rows, dtype=torch.float32, device=student.device)
    with _device(student):
        row_kernel[(triton.cdiv(rows, together),)](
            student,
            other,
            *(student if side is None else side.contiguous() for side in (labels, class_weights, row_weights)),
            *losses,
            rows,
            width,
            other.shape[1],
            student.stride(0),
            other.stride(0),
            spec.ignore_index,
            temperature,
            divergence.logit_scale,
            divergence.softcap or 1.0,
            planned.share,
            divergence.delta,
            planned.factor,
            planned.target_factor,
            spec.divergence_weight,
            spec.ce_weight,
            spec.label_smoothing,
            KIND=planned.kind,
            CENTERED=divergence.centered,
            CAPPED=divergence.softcap is not None,
            CE=spec.ce_weight != 0.0,
            SMOOTHED=spec.ce_weight != 0.0 and spec.label_smoothing != 0.0,
            ONE_SOFTMAX=temperature == 1.0 and planned.kind not in {"", "logit-mse", "nkd", "dkd"},
            LABELLED=labels is not None,
            CLASS_WEIGHTED=class_weights is not None,
            ROW_WEIGHTED=row_weights is not None,
            GRADIENT=gradient,
            THREE_PASSES=three_passes,
            R=together,
            B=block,
            num_warps=max(1, together * block // LOGITS_OF_A_WARP),
        )
    return losses[0], losses[1]


def scale(rows: Tensor, factors: Tensor) -> None:
    """Multiply each row (R, C) by its factor (R,) in place, in one launch that waits for nothing."""
    block = min(triton.next_power_of_2(rows.shape[1]), 2 * MOST_COLUMNS)
    with _device(rows):
        scale_kernel[(len(rows),)](rows, factors.contiguous(), rows.shape[1], rows.stride(0), B=block)


def _in_rows(logits: Tensor) -> Tensor:
    return logits if logits.stride(-1) == 1 or logits.shape[-1] == 1 else logits.contiguous()


def _device(logits: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be that of the logits."""
    return torch.cuda.device(logits.device) if logits.is_cuda else nullcontext()
