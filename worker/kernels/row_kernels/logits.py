"""Loads logits in the kernels, and computes the logarithm of the sum of their exponentials."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN2_HIGH = tl.constexpr(0.693359375)
"""ln 2 in two parts: 9 bits, whose product with an exponent below 2^15 is exact, and the rest."""
LN2_LOW = tl.constexpr(-2.1219444005469057e-4)
ROUND = tl.constexpr(12582912.0)
"""1.5 * 2^23: adding it rounds a float32 to an integer, which is then in its lowest bits."""
FLOOR = tl.constexpr(-1e9)
"""Log of a probability of 0, as in `worker.kernels.log_probs`."""
NONE = tl.constexpr(-float("inf"))


@triton.jit
def _power(exponent):
    """2^exponent for integers up to 0, by bit operations; 0 below -126."""
    biased = tl.maximum(exponent, -127.0) + 127.0 + ROUND
    return (biased.to(tl.int32, bitcast=True) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _split(x):
    """exp(x) as mantissa in [0.7, 1.42] and exponent; 0 and the lowest exponent if x is -inf."""
    masked = x == NONE
    finite = tl.where(masked, 0.0, x)
    exponent = (finite * LOG2_E + ROUND) - ROUND
    mantissa = tl.exp((finite - exponent * LN2_HIGH) - exponent * LN2_LOW)
    return tl.where(masked, 0.0, mantissa), tl.where(masked, FLOOR, exponent)


@triton.jit
def load_raw(row, columns, width, live):
    """Raw logits (R, B); -inf beyond the width and in ignored rows."""
    return tl.load(row + columns, mask=live & (columns < width), other=NONE).to(tl.float32)


@triton.jit
def load_logits(row, columns, width, live, skipped, temperature):
    """Logits (R, B) at the temperature, with the column `skipped` masked, and which are masked in the input."""
    raw = load_raw(row, columns, width, live)
    return tl.where(columns == skipped, NONE, raw / temperature), (raw == NONE) & (columns < width) & live


@triton.jit
def log_sum(
    row, width, live, skipped, temperature,
    THREE_PASSES: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """log sum exp of each row in two parts (R, 1), and the number of masked columns.

    0 and FLOOR if all columns are masked.
    """
    mantissas = tl.zeros([R, B], tl.float32)
    exponents = tl.zeros([R, B], tl.float32) + FLOOR
    masked = tl.zeros([R, B], tl.float32)
    if THREE_PASSES:
        for start in range(0, width, B):
            columns = start + tl.arange(0, B)[None, :]
            logits, is_masked = load_logits(row, columns, width, live, skipped, temperature)
            exponents = tl.maximum(exponents, logits)
            masked += is_masked.to(tl.float32)
        high = tl.max(exponents, axis=1, keep_dims=True)
        for start in range(0, width, B):
            columns = start + tl.arange(0, B)[None, :]
            logits, _ = load_logits(row, columns, width, live, skipped, temperature)
            mantissas += tl.exp(logits - high)
        low = tl.zeros_like(high)
        total = tl.sum(mantissas, axis=1, keep_dims=True)
    else:
        for start in range(0, width, B):
            columns = start + tl.arange(0, B)[None, :]
            logits, is_masked = load_logits(row, columns, width, live, skipped, temperature)
            mantissa, exponent = _split(logits)
            top = tl.maximum(exponents, exponent)
            mantissas = mantissas * _power(exponents - top) + mantissa * _power(exponent - top)
            exponents = top
            masked += is_masked.to(tl.float32)
        top = tl.max(exponents, axis=1, keep_dims=True)
        total = tl.sum(mantissas * _power(exponents - top), axis=1, keep_dims=True)
        high = top * LN2_HIGH
        low = top * LN2_LOW
    empty = total == 0.0
    low = tl.where(empty, FLOOR, low + tl.log(tl.where(empty, 1.0, total)))
    return tl.where(empty, 0.0, high), low, tl.sum(masked, axis=1, keep_dims=True)


@triton.jit
def logit_at(row, label, width, live):
    """The logit (R, 1) of the label; -inf if it is no column of this side."""
    return tl.load(row + label, mask=live & (label >= 0) & (label < width), other=NONE).to(tl.float32)


@triton.jit
def live_rows(labels, rows, ignore_index, LABELLED: tl.constexpr, R: tl.constexpr):
    """Numbers of this program's rows (R, 1), whether they exist, whether they count, and their labels or -1."""
    row = tl.program_id(0) * R + tl.arange(0, R)[:, None]
    inside = row < rows
    live = inside
    label = tl.zeros([R, 1], tl.int64) - 1
    if LABELLED:
        label = tl.load(labels + row, mask=inside, other=0).to(tl.int64)
        live = inside & (label != ignore_index)
    return row, inside, live, label
