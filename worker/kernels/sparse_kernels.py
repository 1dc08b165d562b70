"""Forward KL against a sparse teacher, with cross-entropy, in Triton: one launch, a program for each row.

A program makes passes over the student's logits in blocks, as in `worker.kernels.row_kernels`: one for the divisor of
each softmax, one for the sum of log q, for the teacher's other columns, and one to write the gradient as if no column
were stored; then it writes the few stored columns. The teacher is K numbers per row; nothing of the size of its
vocabulary is read or allocated. Names as there.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.kernels.devices import device_of
from worker.kernels.row_kernels.launches import LOGITS_OF_A_WARP, MOST_COLUMNS
from worker.kernels.row_kernels.logits import NONE, live_rows, load_raw, log_sum
from worker.kernels.spec import RowSpec
from worker.kernels.top_k import TopKProbs


@triton.jit
def _sum_of_logs(student, width, live, high, low, temperature, B: tl.constexpr):
    """Sum of log q over the unmasked columns up to `width`, and their number (1, 1)."""
    logs = tl.zeros([1, B], tl.float32)
    count = tl.zeros([1, B], tl.float32)
    for start in range(0, width, B):
        x = load_raw(student, start + tl.arange(0, B)[None, :], width, live)
        logs += tl.where(x > NONE, (x / temperature - high) - low, 0.0)
        count += (x > NONE).to(tl.float32)
    return tl.sum(logs, axis=1, keep_dims=True), tl.sum(count, axis=1, keep_dims=True)


@triton.jit
def _gradient(x, high, low, hard_high, hard_low, mass, share, soft, hard, temperature, at_label, HARD: tl.constexpr):
    """Gradient of logits whose teacher probability is `share`."""
    gradient = soft * (mass * tl.exp((x / temperature - high) - low) - share)
    if HARD:
        gradient += hard * (tl.exp((x - hard_high) - hard_low) - at_label.to(tl.float32))
    return gradient


@triton.jit
def sparse_kernel(
    pointer, labels, scale, kept_columns, kept_logs, other_logs, divergences, cross_entropies,
    rows, width, shared, stride, kept, ignore_index, temperature, soft_weight, hard_weight,
    HARD: tl.constexpr, ONE_SOFTMAX: tl.constexpr, LABELLED: tl.constexpr,
    GRADIENT: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """See the module. `shared` is the number of columns of both student and teacher."""
    row, inside, live, label = live_rows(labels, rows, ignore_index, LABELLED, 1)
    student = pointer + row.to(tl.int64) * stride
    end = width * tl.max(live.to(tl.int32))
    nowhere = tl.zeros([1, 1], tl.int64) - 1
    high, low, _ = log_sum(student, end, live, nowhere, temperature, False, 1, B)
    hard_high, hard_low = high, low
    if HARD and not ONE_SOFTMAX:
        hard_high, hard_low, _ = log_sum(student, end, live, nowhere, 1.0, False, 1, B)

    numbers = tl.arange(0, K)[None, :]
    columns = tl.load(kept_columns + row.to(tl.int64) * kept + numbers, mask=inside & (numbers < kept), other=-1)
    logs = tl.load(kept_logs + row.to(tl.int64) * kept + numbers, mask=inside & (numbers < kept), other=NONE)
    known = live & (columns >= 0) & (columns < shared)
    x_kept = tl.load(student + columns, mask=known, other=NONE).to(tl.float32)
    known = known & (x_kept > NONE)
    log_q = tl.where(known, (x_kept / temperature - high) - low, 0.0)
    p = tl.where(known, tl.exp(logs), 0.0)
    gaps = tl.where(p > 0.0, p * (logs - log_q), 0.0)
    divergence = tl.sum(gaps, axis=1, keep_dims=True)
    mass = tl.sum(p, axis=1, keep_dims=True)
    log_other = tl.load(other_logs + row, mask=inside, other=NONE)
    share = tl.exp(log_other)
    sum_of_logs, count = _sum_of_logs(student, shared * (end > 0).to(tl.int32), live, high, low, temperature, B)
    count -= tl.sum(known.to(tl.float32), axis=1, keep_dims=True)
    sum_of_logs -= tl.sum(log_q, axis=1, keep_dims=True)
    divergence += tl.where(share > 0.0, share * (count * log_other - sum_of_logs), 0.0)
    mass += share * count
    if HARD:
        is_class = live & (label >= 0) & (label < width)
        x_target = tl.load(student + label, mask=is_class, other=NONE).to(tl.float32)
        tl.store(cross_entropies + row, tl.where(live, hard_low - (x_target - hard_high), 0.0), mask=inside)
    tl.store(divergences + row, tl.where(live, temperature * temperature * divergence, 0.0), mask=inside)

    if GRADIENT:
        weight = tl.load(scale)
        soft = weight * soft_weight
        hard = weight * hard_weight
        tl.debug_barrier()  # every warp has read the logits of the kept columns and of the label
        for start in range(0, width, B):
            every = start + tl.arange(0, B)[None, :]
            x = load_raw(student, every, width, live)
            even = tl.where((every < shared) & (x > NONE), share, 0.0)
            gradient = _gradient(
                x, high, low, hard_high, hard_low, mass, even, soft, hard, temperature, every == label, HARD
            )
            tl.store(student + every, tl.where(live, gradient, 0.0), mask=inside & (every < width))
        tl.debug_barrier()  # before the gradient of the stored columns is overwritten
        gradient = _gradient(
            x_kept, high, low, hard_high, hard_low, mass, p, soft, hard, temperature, columns == label, HARD
        )
        tl.store(student + columns, gradient, mask=known)


def launch(
    student: Tensor, known: TopKProbs, shared: int, labels: Tensor | None, spec: RowSpec, scale: Tensor, gradient: bool
) -> tuple[Tensor, Tensor]:
    """Divergence and cross-entropy (R,) float32 of logits (R, C), floating, of which `shared` columns are the teacher's
    too; `labels` are (R,) int64.

    With `gradient`, the logits are overwritten by the gradient of the weighted sum times `scale`, a floating scalar on
    the device. `spec` is one that `worker.kernels.processor_rows.covers`.
    """
    assert spec.divergence is not None
    temperature, (rows, width) = spec.divergence.temperature, student.shape
    block = min(triton.next_power_of_2(width), MOST_COLUMNS)
    losses = torch.zeros(2, rows, dtype=torch.float32, device=student.device)
    with device_of(student):
        sparse_kernel[(rows,)](
            student,
            student if labels is None else labels.contiguous(),
            scale,
            known.columns.contiguous(),
            known.logs.contiguous(),
            known.other.contiguous(),
            *losses,
            rows,
            width,
            shared,
            student.stride(0),
            known.columns.shape[1],
            spec.ignore_index,
            temperature,
            spec.divergence_weight * temperature,
            spec.ce_weight,
            HARD=spec.ce_weight != 0.0,
            ONE_SOFTMAX=temperature == 1.0,
            LABELLED=labels is not None,
            GRADIENT=gradient,
            K=triton.next_power_of_2(known.columns.shape[1]),
            B=block,
            num_warps=max(1, block // LOGITS_OF_A_WARP),
        )
    return losses[0], losses[1]
