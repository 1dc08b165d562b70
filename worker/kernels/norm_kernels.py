"""Norms of tokens in Triton: a row of D numbers per program, read once, with the sum of two branches before it.

Mean and scale of each row are kept for the backward pass, which reads the normalised sum again. Statistics are float32;
the variance is that of the differences from the mean, so that rows far from zero lose nothing. Separate from
`worker.kernels.token_norms` because Triton is not available on every machine.

Names: D the numbers of a row, BLOCK the next power of 2, KIND one of the constants below.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.kernels.devices import device_of

LAYER, RMS, CRMS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
MOST_PROGRAMS = 512
"""Programs of the backward pass, each with its sums of the gradients of scale and offset."""
LARGE_BLOCK = 4096
"""Rows of at least so many numbers take twice the threads."""


@triton.jit
def _forward(
    x, added, weight, offset, total, out, means, scales, eps, D: tl.constexpr, BLOCK: tl.constexpr,
    KIND: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    """A row of the sum and of the output, with its mean (a layer norm's alone) and its scale 1 / s."""
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = columns < D
    values = tl.load(x + row * D + columns, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        values += tl.load(added + row * D + columns, mask=inside, other=0.0).to(tl.float32)
        stored = values.to(total.dtype.element_ty)
        tl.store(total + row * D + columns, stored, mask=inside)
        values = stored.to(tl.float32)  # the backward pass reads what is stored
    if KIND == LAYER:
        mean = tl.sum(values) / D
        values = tl.where(inside, values - mean, 0.0)
        tl.store(means + row, mean)
        square = tl.sum(values * values) / D
    elif KIND == RMS:
        square = tl.sum(values * values) / D
    else:
        whole = tl.sum(values)
        square = (tl.sum(values * values) + whole * whole) / (D + 1)
    scale = 1.0 / tl.sqrt(square + eps)
    tl.store(scales + row, scale)
    result = values * scale * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    if KIND == LAYER:
        result += tl.load(offset + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * D + columns, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    total, weight, means, scales, given, of_total, grad, of_weight, of_offset, rows, D: tl.constexpr,
    BLOCK: tl.constexpr, KIND: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    """Gradients of some rows, and the sums over them of those of scale and offset."""
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    factors = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    sum_weight, sum_offset = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for number in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.cast(number, tl.int64)
        values = tl.load(total + row * D + columns, mask=inside, other=0.0).to(tl.float32)
        above = tl.load(given + row * D + columns, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(scales + row)
        if KIND == LAYER:
            values = tl.where(inside, values - tl.load(means + row), 0.0)
        normal, slope = values * scale, above * factors
        sum_weight += above * normal
        along = tl.sum(slope * normal)
        if KIND == LAYER:
            sum_offset += above
            result = scale * (slope - tl.sum(slope) / D - normal * (along / D))
        elif KIND == RMS:
            result = scale * (slope - normal * (along / D))
        else:
            result = scale * (slope - (normal + tl.sum(normal)) * (along / (D + 1)))
        if ADDS:
            result += tl.load(of_total + row * D + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad + row * D + columns, result.to(grad.dtype.element_ty), mask=inside)
    place = tl.program_id(0) * D + columns
    tl.store(of_weight + place, sum_weight, mask=inside)
    if KIND == LAYER:
        tl.store(of_offset + place, sum_offset, mask=inside)


def forward(
    x: Tensor, added: Tensor | None, weight: Tensor, offset: Tensor | None, eps: float, kind: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum (R, D) of `x` and `added` (both (R, D), floating, contiguous; without `added` it is `x`) in the dtype of
    `x`, its norm (R, D), and the means and scales (R,) float32 of its rows."""
    rows, width = x.shape
    total, out = x if added is None else torch.empty_like(x), torch.empty_like(x)
    means, scales = (torch.empty(rows, device=x.device, dtype=torch.float32) for _ in range(2))
    with device_of(x):
        _forward[(rows,)](
            *(x, x if added is None else added, weight, weight if offset is None else offset),
            *(total, out, means, scales, eps),
            **_settings(width, kind, adds=added is not None),
        )
    return total, out, means, scales


def backward(
    total: Tensor, weight: Tensor, means: Tensor, scales: Tensor, given: Tensor, of_total: Tensor | None, kind: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of both branches of the sum (R, D), and of scale and offset (D,) float32, from those of the norm
    (R, D), and of the sum (R, D) if it is used elsewhere."""
    rows, width = total.shape
    programs = min(rows, MOST_PROGRAMS)
    grad = torch.empty_like(total)
    sums = torch.zeros(2, programs, width, device=total.device, dtype=torch.float32)
    with device_of(total):
        _backward[(programs,)](
            *(total, weight, means, scales, given, given if of_total is None else of_total),
            *(grad, sums[0], sums[1], rows),
            **_settings(width, kind, adds=of_total is not None),
        )
    of_weight, of_offset = sums.sum(1)
    return grad, of_weight, of_offset


def _settings(width: int, kind: int, *, adds: bool) -> dict[str, int | bool]:
    block = triton.next_power_of_2(width)
    threads = 8 if block >= LARGE_BLOCK else 4
    return {"D": width, "BLOCK": block, "KIND": kind, "ADDS": adds, "num_warps": threads}
