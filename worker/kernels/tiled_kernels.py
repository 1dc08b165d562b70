"""The last layer of both sides and their divergence in Triton, in tiles of rows times vocabulary that stay on the chip.

A tile's logits are made by a loop over the hidden numbers, once for each side, and used up where they are:

* `statistics_kernel` keeps of every row what the divergence needs, while its maxima grow: it goes over the vocabulary
  once. Several programs share a row's vocabulary, or there would be too few of them; `worker.kernels.tiled` brings
  together what each found;
* `hidden_kernel` and `weight_kernel` make the tiles again, now as gradients of the logits, and multiply them into that
  of the hidden states and of the weight. Each is the only writer of its part of the result, so that nothing depends on
  the order in which programs run. What they add to lies in the second-level cache, as float32.

Names: N rows, V columns and H hidden numbers of a tile. q is the student's softmax, p the teacher's. Of both sides a
tuple comes: hidden states, weight, bias, their row strides, hidden numbers, columns.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
from __future__ import annotations

import triton
import triton.language as tl

from worker.kernels.row_kernels.logits import NONE, headed

LOWEST = tl.constexpr(-1e30)
"""Where a maximum begins: finite, so that differences of maxima are numbers."""
HIGH_Q, SUM_Q, HIGH_P, SUM_P, SUM_HARD, GAP, KNOWN, TARGET = (tl.constexpr(field) for field in range(8))
"""Fields of the statistics (8, splits, rows) float32: maxima of the logits and sums of exponentials of both sides, that
of the student at temperature 1, the sums of the divergence, the label's logit."""


@triton.jit
def _product(
    left, right, row, there, column, known, left_stride, right_stride, size,
    N: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """(N, V) of hidden states (N, size) and a weight (V, size)."""
    total = tl.zeros([N, V], tl.float32)
    of_row = left + row[:, None].to(tl.int64) * left_stride
    of_column = right + column[None, :].to(tl.int64) * right_stride
    for start in range(0, size, H):
        inner = start + tl.arange(0, H)
        a = tl.load(of_row + inner[None, :], mask=there[:, None] & (inner[None, :] < size), other=0.0)
        b = tl.load(of_column + inner[:, None], mask=known[None, :] & (inner[:, None] < size), other=0.0)
        total = tl.dot(a, b, total)
    return total


@triton.jit
def _logits(
    side, row, there, column, scale, cap,
    CAPPED: tl.constexpr, BIASED: tl.constexpr,
    N: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Logits (N, V) of a side's head, -inf beyond its vocabulary, and their derivative to the product."""
    hidden, weight, bias, hidden_stride, weight_stride, size, width = side
    known = column < width
    raw = _product(hidden, weight, row, there, column, known, hidden_stride, weight_stride, size, N, V, H)
    if BIASED:
        raw += tl.load(bias + column, mask=known, other=0.0).to(tl.float32)[None, :]
    logits, slope = headed(tl.where(known[None, :], raw, NONE), scale, cap, CAPPED)
    return logits, slope


@triton.jit
def _rows(labels, start, rows, ignore_index, LABELLED: tl.constexpr, N: tl.constexpr):
    """Numbers of a tile's rows, whether they exist, whether they count, and their labels or -1."""
    row = start + tl.arange(0, N)
    exists = row < rows
    live = exists
    label = tl.zeros([N], tl.int64) - 1
    if LABELLED:
        label = tl.load(labels + row, mask=exists, other=0).to(tl.int64)
        live = exists & (label != ignore_index)
    return row, exists, live, label


@triton.jit
def _grown(high, logits):
    """A maximum with more logits in it, and the factor of what was summed below the old one."""
    higher = tl.maximum(high, tl.max(logits, axis=1))
    return higher, tl.exp(high - higher)


@triton.jit
def statistics_kernel(
    student, teacher, labels, statistics, rows, of_a_split, ignore_index, temperature, scale, cap,
    REVERSE: tl.constexpr, HARD: tl.constexpr, CAPPED: tl.constexpr, LABELLED: tl.constexpr,
    STUDENT_BIASED: tl.constexpr, TEACHER_BIASED: tl.constexpr, N: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """See the module. GAP: the sum of e^(a - max a) ((a - max a) - (b - max b)) over the columns that both sides have,
    KNOWN that of e^(a - max a), where a is the side whose expectation the divergence takes: REVERSE, the student's."""
    split = tl.program_id(1)
    row, exists, live, label = _rows(labels, tl.program_id(0) * N, rows, ignore_index, LABELLED, N)
    high_q = tl.zeros([N], tl.float32) + LOWEST
    high_p = tl.zeros([N], tl.float32) + LOWEST
    sum_q = tl.zeros([N], tl.float32)
    sum_p = tl.zeros([N], tl.float32)
    hard = tl.zeros([N], tl.float32)
    gap = tl.zeros([N], tl.float32)
    known = tl.zeros([N], tl.float32)
    target = tl.zeros([N], tl.float32) + NONE
    end = tl.minimum(tl.maximum(student[6], teacher[6]), (split + 1) * of_a_split)
    for start in range(split * of_a_split, end, V):
        column = start + tl.arange(0, V)
        z, _ = _logits(student, row, live, column, scale, cap, CAPPED, STUDENT_BIASED, N, V, H)
        y, _ = _logits(teacher, row, live, column, scale, cap, CAPPED, TEACHER_BIASED, N, V, H)
        y = y / temperature
        x = z / temperature
        higher_q, keep_q = _grown(high_q, x)
        higher_p, keep_p = _grown(high_p, y)
        below_q = x - higher_q[:, None]
        below_p = y - higher_p[:, None]
        e_q = tl.exp(below_q)
        e_p = tl.exp(below_p)
        shared = (x > NONE) & (y > NONE)
        shift = (higher_p - high_p) - (higher_q - high_q)
        apart = tl.where(shared, below_p - below_q, 0.0)
        share = e_p
        keep = keep_p
        if REVERSE:
            shift = -shift
            apart = -apart
            share = e_q
            keep = keep_q
        share = tl.where(shared, share, 0.0)
        gap = keep * (gap - known * shift) + tl.sum(share * apart, axis=1)
        known = keep * known + tl.sum(share, axis=1)
        sum_q = keep_q * sum_q + tl.sum(e_q, axis=1)
        sum_p = keep_p * sum_p + tl.sum(e_p, axis=1)
        if HARD:
            grown = tl.exp((high_q - higher_q) * temperature)
            hard = grown * hard + tl.sum(tl.exp(below_q * temperature), axis=1)
            target = tl.maximum(target, tl.max(tl.where(column[None, :] == label[:, None], z, NONE), axis=1))
        high_q = higher_q
        high_p = higher_p
    place = statistics + split.to(tl.int64) * rows + row
    field = tl.num_programs(1).to(tl.int64) * rows
    tl.store(place + HIGH_Q * field, high_q, mask=exists)
    tl.store(place + SUM_Q * field, sum_q, mask=exists)
    tl.store(place + HIGH_P * field, high_p, mask=exists)
    tl.store(place + SUM_P * field, sum_p, mask=exists)
    tl.store(place + SUM_HARD * field, hard, mask=exists)
    tl.store(place + GAP * field, gap, mask=exists)
    tl.store(place + KNOWN * field, known, mask=exists)
    tl.store(place + TARGET * field, target, mask=exists)


@triton.jit
def _gradient(
    student, teacher, sums, rows, row, live, label, column, temperature, scale, cap, soft, hard,
    REVERSE: tl.constexpr, HARD: tl.constexpr, CAPPED: tl.constexpr,
    STUDENT_BIASED: tl.constexpr, TEACHER_BIASED: tl.constexpr, N: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Of the student's products (N, V); `sums` (7, rows): maximum and log-sum of q, the same of p, log-sum of the
    student at temperature 1, what of the expectation's side is shared, and the divergence without its factor."""
    z, slope = _logits(student, row, live, column, scale, cap, CAPPED, STUDENT_BIASED, N, V, H)
    y, _ = _logits(teacher, row, live, column, scale, cap, CAPPED, TEACHER_BIASED, N, V, H)
    high_q = tl.load(sums + row, mask=live, other=0.0)[:, None]
    log_q = (z / temperature - high_q) - tl.load(sums + rows + row, mask=live, other=0.0)[:, None]
    high_p = tl.load(sums + 2 * rows + row, mask=live, other=0.0)[:, None]
    log_p = (y / temperature - high_p) - tl.load(sums + 3 * rows + row, mask=live, other=0.0)[:, None]
    known = tl.load(sums + 5 * rows + row, mask=live, other=0.0)[:, None]
    shared = (z > NONE) & (y > NONE)
    if REVERSE:
        value = tl.load(sums + 6 * rows + row, mask=live, other=0.0)[:, None]
        apart = tl.where(shared, log_q - log_p + 1.0, 0.0)
        gradient = soft * tl.exp(log_q) * (apart - (value + known))
    else:
        gradient = soft * (tl.exp(log_q) * known - tl.where(shared, tl.exp(log_p), 0.0))
    if HARD:
        log_hard = (z - high_q * temperature) - tl.load(sums + 4 * rows + row, mask=live, other=0.0)[:, None]
        gradient += hard * (tl.exp(log_hard) - (column[None, :] == label[:, None]).to(tl.float32))
    return tl.where(live[:, None] & (z > NONE), gradient * slope, 0.0)


@triton.jit
def hidden_kernel(
    student, teacher, labels, sums, gradients, rows, of_a_split, ignore_index, temperature, scale, cap, soft, hard,
    REVERSE: tl.constexpr, HARD: tl.constexpr, CAPPED: tl.constexpr, LABELLED: tl.constexpr,
    STUDENT_BIASED: tl.constexpr, TEACHER_BIASED: tl.constexpr, N: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Add to `gradients` (splits, rows, hidden numbers) float32, of zeros, what each split of the vocabulary gives."""
    split = tl.program_id(1)
    row, exists, live, label = _rows(labels, tl.program_id(0) * N, rows, ignore_index, LABELLED, N)
    weight, stride, size, width = student[1], student[4], student[5], student[6]
    into = gradients + (split.to(tl.int64) * rows + row[:, None]) * size
    end = tl.minimum(width, (split + 1) * of_a_split)
    for start in range(split * of_a_split, end, V):
        column = start + tl.arange(0, V)
        gradient = _gradient(
            student, teacher, sums, rows, row, live, label, column, temperature, scale, cap, soft, hard,
            REVERSE, HARD, CAPPED, STUDENT_BIASED, TEACHER_BIASED, N, V, H,
        ).to(weight.dtype.element_ty)  # fmt: skip
        for first in range(0, size, H):
            inner = first + tl.arange(0, H)[None, :]
            of_column = weight + column[:, None].to(tl.int64) * stride + inner
            w = tl.load(of_column, mask=(column[:, None] < width) & (inner < size), other=0.0)
            inside = exists[:, None] & (inner < size)
            added = tl.dot(gradient, w, tl.load(into + inner, mask=inside, other=0.0))
            tl.store(into + inner, added, mask=inside)
        tl.debug_barrier()  # whoever reads a sum next may be another thread than its writer


@triton.jit
def weight_kernel(
    student, teacher, labels, sums, scratch, gradients, of_bias, rows, ignore_index, temperature, scale, cap, soft,
    hard, REVERSE: tl.constexpr, HARD: tl.constexpr, CAPPED: tl.constexpr, LABELLED: tl.constexpr,
    STUDENT_BIASED: tl.constexpr, TEACHER_BIASED: tl.constexpr, N: tl.constexpr, V: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Write `gradients` (columns, hidden numbers) and `of_bias` (columns,), some columns after the others.

    `scratch` (programs, V, hidden numbers) float32 is what each program adds up in.
    """
    hidden, stride, size, width = student[0], student[3], student[5], student[6]
    within = tl.arange(0, V)
    into = scratch + (tl.program_id(0).to(tl.int64) * V + within[:, None]) * size
    for tile in range(tl.program_id(0), tl.cdiv(width, V), tl.num_programs(0)):
        column = tile * V + within
        total = tl.zeros([V], tl.float32)
        for start in range(0, rows, N):
            row, _, live, label = _rows(labels, start, rows, ignore_index, LABELLED, N)
            gradient = _gradient(
                student, teacher, sums, rows, row, live, label, column, temperature, scale, cap, soft, hard,
                REVERSE, HARD, CAPPED, STUDENT_BIASED, TEACHER_BIASED, N, V, H,
            )  # fmt: skip
            total += tl.sum(gradient, axis=0)
            turned = tl.trans(gradient.to(hidden.dtype.element_ty))
            for first in range(0, size, H):
                inner = first + tl.arange(0, H)[None, :]
                of_row = hidden + row[:, None].to(tl.int64) * stride + inner
                h = tl.load(of_row, mask=live[:, None] & (inner < size), other=0.0)
                so_far = tl.load(into + inner, mask=(inner < size) & (start > 0), other=0.0)
                tl.store(into + inner, tl.dot(turned, h, so_far), mask=inner < size)
            tl.debug_barrier()  # as above
        for first in range(0, size, H):
            inner = first + tl.arange(0, H)[None, :]
            inside = (column[:, None] < width) & (inner < size)
            found = tl.load(into + inner, mask=inside, other=0.0)
            tl.store(gradients + column[:, None].to(tl.int64) * size + inner, found, mask=inside)
        if STUDENT_BIASED:
            tl.store(of_bias + column, total, mask=column < width)
        tl.debug_barrier()  # before the next columns are added up in the same place
