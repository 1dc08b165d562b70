"""Steps of AdamP and SGDP in Triton: all parameters of one dtype in four launches, by tables of their addresses.

Whether an update is projected depends on the gradient and weights of a whole tensor, so:

1. `sums_kernel` reads gradients and weights, and writes three sums for every row: g·w, w·w, g·g;
2. `decide_kernel`, a program for each tensor, computes from them whether all channels, or the whole, pass the test;
3. `step_kernel` updates moments and weights in one pass. If channels are projected it makes two passes over a row,
   first for u·w; in the second the row is in a cache. It processes the tiles from the last to the first, because the
   second-level cache still has what was read last;
4. `step_kernel` a second time, for tensors that are projected as a whole, and for rows cut in pieces: their u·w is a
   sum over programs, which step 3 has written instead of updating them.

Per float32 weight, step 1 transfers 8 bytes and step 3 28 (SGDP: 20); AdamW transfers 28 in all. No sum depends on the
order in which programs run.

A tile is some rows of a tensor, or a piece of a long row: R rows, processed in blocks of B columns. A row is an output
channel, and is contiguous in memory. Tensors that are never projected are a single row.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.kernels.devices import device_of
from worker.optimizers import tables as sizes
from worker.optimizers.rule import UpdateRule
from worker.optimizers.tables import Pointers, TableRows, addresses_of, layout_of

ROWS_OF_A_DECISION = 1024
"""Rows that a program reads per iteration."""
WARPS = 4
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

FIRST_TILE, ROWS, LENGTH, PIECES, TOGETHER, FIRST_SUM, PROJECTED = (tl.constexpr(field) for field in range(7))
"""Fields of the layout (7, n) int64 of n tensors."""
WEIGHT, GRADIENT, AVERAGE, SQUARE, AGE, IMAGE = (tl.constexpr(field) for field in range(6))
"""Fields of the addresses (6, n) int64: IMAGE is the rounded parameter of a float32 weight; AGE counts steps."""
G_ON_W, W_ON_W, G_ON_G, U_ON_W = (tl.constexpr(field) for field in range(4))
"""Fields of the sums (4, s) float32 of s rows, or pieces of rows."""
SIZE, ROOT, SHRINK, WHOLE = (tl.constexpr(field) for field in range(4))
"""Fields of the decisions (5, n) float32: step size, 1 / sqrt(1 - beta2^t), factor of the weights, their w·w, ..."""
MODE = tl.constexpr(4)
"""... and one of these:"""
AS_IT_IS, BY_CHANNEL, AS_A_WHOLE = (tl.constexpr(float(mode)) for mode in range(3))


@triton.jit
def _field(table, field, count, tensor):
    """A field of one tensor."""
    return tl.load(table + field * count + tensor)


@triton.jit
def _address(addresses, field, count, tensor, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointer to one tensor's first element."""
    pointer = tl.load(addresses + field * count + tensor).to(tl.pointer_type(TYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _tile(layout, count, tensor, number, ALIGNED: tl.constexpr, PIECE: tl.constexpr, R: tl.constexpr):
    """Rows (R, 1) of a tile and whether they exist, row length, first and last column, and the index of its sums."""
    within = number - _field(layout, FIRST_TILE, count, tensor)
    pieces = _field(layout, PIECES, count, tensor)
    length = _field(layout, LENGTH, count, tensor)
    if ALIGNED:
        length = length // 4 * 4  # shows the compiler that four numbers can be read at a time
    row = within // pieces * R + tl.arange(0, R)[:, None]
    first = within % pieces * PIECE
    sums = _field(layout, FIRST_SUM, count, tensor) + row * pieces + within % pieces
    return row, row < _field(layout, ROWS, count, tensor), length, first, tl.minimum(length, first + PIECE), sums


@triton.jit
def _sums(
    layout, addresses, sums, count, total, tensor, number,
    TYPE: tl.constexpr, ALIGNED: tl.constexpr, PIECE: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Write the sums of a tile's rows for the test of orthogonality of gradient and weights."""
    row, exists, length, first, last, place = _tile(layout, count, tensor, number, ALIGNED, PIECE, R)
    weights = _address(addresses, WEIGHT, count, tensor, tl.float32, ALIGNED) + row * length
    gradients = _address(addresses, GRADIENT, count, tensor, TYPE, ALIGNED) + row * length
    g_on_w = tl.zeros([R, B], tl.float32)
    w_on_w = tl.zeros([R, B], tl.float32)
    g_on_g = tl.zeros([R, B], tl.float32)
    for start in range(first, last, B):
        columns = start + tl.arange(0, B)[None, :]
        inside = exists & (columns < last)
        w = tl.load(weights + columns, mask=inside, other=0.0)
        g = tl.load(gradients + columns, mask=inside, other=0.0).to(tl.float32)
        g_on_w += g * w
        w_on_w += w * w
        g_on_g += g * g
    tl.store(sums + G_ON_W * total + place, tl.sum(g_on_w, axis=1, keep_dims=True), mask=exists)
    tl.store(sums + W_ON_W * total + place, tl.sum(w_on_w, axis=1, keep_dims=True), mask=exists)
    tl.store(sums + G_ON_G * total + place, tl.sum(g_on_g, axis=1, keep_dims=True), mask=exists)


@triton.jit
def sums_kernel(
    layout, owners, addresses, sums, count, total,
    TYPE: tl.constexpr, ALIGNED: tl.constexpr, PIECE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """See the module; `owners` (tiles,) int32 is each tile's tensor, of `count` tensors with `total` sums."""
    number = tl.program_id(0)
    tensor = tl.load(owners + number)
    if _field(layout, PROJECTED, count, tensor) != 0:
        together = _field(layout, TOGETHER, count, tensor)
        if together == 16:
            _sums(layout, addresses, sums, count, total, tensor, number, TYPE, ALIGNED, PIECE, 16, BLOCK // 16)
        elif together == 4:
            _sums(layout, addresses, sums, count, total, tensor, number, TYPE, ALIGNED, PIECE, 4, BLOCK // 4)
        else:
            _sums(layout, addresses, sums, count, total, tensor, number, TYPE, ALIGNED, PIECE, 1, BLOCK)


@triton.jit
def _of_rows(sums, numbers, exists, pieces):
    """Sums of whole rows, from those of their pieces."""
    found = tl.zeros(numbers.shape, tl.float32)
    for piece in range(0, pieces):
        found += tl.load(sums + numbers * pieces + piece, mask=exists, other=0.0)
    return found


@triton.jit
def _orthogonal(g_on_w, w_on_w, g_on_g, most, eps):
    """Whether the cosine between gradient and weights is below `most`; norms are at least `eps`."""
    return tl.abs(g_on_w) / (tl.maximum(tl.sqrt(w_on_w), eps) * tl.maximum(tl.sqrt(g_on_g), eps)) < most


@triton.jit
def _mode(layout, sums, count, total, tensor, delta, eps, D: tl.constexpr):
    """The kind of projection of a tensor's update, and its w·w."""
    rows = _field(layout, ROWS, count, tensor)
    pieces = _field(layout, PIECES, count, tensor)
    length = _field(layout, LENGTH, count, tensor)
    start_of_sums = sums + _field(layout, FIRST_SUM, count, tensor)
    failed = tl.zeros([D], tl.int32)
    g_on_w = tl.zeros([D], tl.float32)
    w_on_w = tl.zeros([D], tl.float32)
    g_on_g = tl.zeros([D], tl.float32)
    for start in range(0, rows, D):
        numbers = start + tl.arange(0, D)
        exists = numbers < rows
        of_both = _of_rows(start_of_sums + G_ON_W * total, numbers, exists, pieces)
        of_weights = _of_rows(start_of_sums + W_ON_W * total, numbers, exists, pieces)
        of_gradients = _of_rows(start_of_sums + G_ON_G * total, numbers, exists, pieces)
        passed = _orthogonal(of_both, of_weights, of_gradients, delta / tl.sqrt(length.to(tl.float32)), eps)
        failed += (exists & (passed == 0)).to(tl.int32)
        g_on_w += of_both
        w_on_w += of_weights
        g_on_g += of_gradients
    whole = tl.sum(w_on_w)
    most = delta / tl.sqrt((rows * length).to(tl.float32))
    passed = _orthogonal(tl.sum(g_on_w), whole, tl.sum(g_on_g), most, eps)
    return tl.where(tl.sum(failed) == 0, BY_CHANNEL, tl.where(passed, AS_A_WHOLE, AS_IT_IS)), whole


@triton.jit
def decide_kernel(
    layout, addresses, sums, decisions, count, total,
    rate, decay, wd_ratio, delta, eps, log_beta1, log_beta2, ADAM: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """See the module; also counts the step, and corrects the bias of the moments (in float64: 1 - 0.999^1)."""
    tensor = tl.program_id(0)
    mode = AS_IT_IS
    whole = 0.0
    if _field(layout, PROJECTED, count, tensor) != 0:
        mode, whole = _mode(layout, sums, count, total, tensor, delta, eps, D)
    size = rate
    root = 1.0
    if ADAM:
        place = _address(addresses, AGE, count, tensor, tl.float32, False)
        age = tl.load(place) + 1.0
        tl.store(place, age)
        size = (rate / (1.0 - tl.exp(age.to(tl.float64) * log_beta1))).to(tl.float32)
        root = (1.0 / tl.sqrt(1.0 - tl.exp(age.to(tl.float64) * log_beta2))).to(tl.float32)
    tl.store(decisions + SIZE * count + tensor, size)
    tl.store(decisions + ROOT * count + tensor, root)
    tl.store(decisions + SHRINK * count + tensor, 1.0 - decay * tl.where(mode == AS_IT_IS, 1.0, wd_ratio))
    tl.store(decisions + WHOLE * count + tensor, whole)
    tl.store(decisions + MODE * count + tensor, mode)


@triton.jit
def _load_and_update(data, at, inside, root, rule, ADAM: tl.constexpr, NESTEROV: tl.constexpr):
    """Weights, the update before the step size, and the updated moments, all (R, B)."""
    keep, take, again, keep_square, take_square, eps = rule
    w = tl.load(data[0] + at, mask=inside, other=0.0)
    g = tl.load(data[1] + at, mask=inside, other=0.0).to(tl.float32)
    average = keep * tl.load(data[2] + at, mask=inside, other=0.0) + take * g
    update = average
    square = average
    if NESTEROV:
        update = keep * average + again * g
    if ADAM:
        square = keep_square * tl.load(data[3] + at, mask=inside, other=0.0) + take_square * g * g
        update = update / (tl.sqrt(square) * root + eps)
    return w, update, average, square


@triton.jit
def _u_on_w(
    data, exists, first, last, root, rule,
    ADAM: tl.constexpr, NESTEROV: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """u·w of a tile's rows (R, 1)."""
    along = tl.zeros([R, B], tl.float32)
    for start in range(first, last, B):
        columns = start + tl.arange(0, B)[None, :]
        w, update, _, _ = _load_and_update(data, columns, exists & (columns < last), root, rule, ADAM, NESTEROV)
        along += update * w
    return tl.sum(along, axis=1, keep_dims=True)


@triton.jit
def _over_programs(tables, tensor, mode, row, exists, B: tl.constexpr):
    """u·w and w·w of whole rows (R, 1) or, the same for all rows, of the whole tensor."""
    layout, _, sums, decisions, count, total = tables
    pieces = _field(layout, PIECES, count, tensor)
    of_tensor = sums + _field(layout, FIRST_SUM, count, tensor)
    u_on_w = _of_rows(of_tensor + U_ON_W * total, row, exists, pieces)
    w_on_w = _of_rows(of_tensor + W_ON_W * total, row, exists, pieces)
    if mode == AS_A_WHOLE:
        parts = tl.zeros([B], tl.float32)
        number = pieces * _field(layout, ROWS, count, tensor)
        for start in range(0, number, B):
            numbers = start + tl.arange(0, B)
            parts += tl.load(of_tensor + U_ON_W * total + numbers, mask=numbers < number, other=0.0)
        u_on_w = tl.zeros_like(u_on_w) + tl.sum(parts)
        w_on_w = tl.zeros_like(w_on_w) + _field(decisions, WHOLE, count, tensor)
    return u_on_w, w_on_w


@triton.jit
def _move(
    data, exists, first, last, radial, size, root, shrink, rule,
    ADAM: tl.constexpr, NESTEROV: tl.constexpr, PROJECT_BUFFER: tl.constexpr, ROUNDED: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Write a tile's moments and weights; `radial` (R, 1) times the weights is subtracted from the update."""
    for start in range(first, last, B):
        columns = start + tl.arange(0, B)[None, :]
        inside = exists & (columns < last)
        w, update, average, square = _load_and_update(data, columns, inside, root, rule, ADAM, NESTEROV)
        moved = (shrink + size * radial) * w - size * update
        if PROJECT_BUFFER:
            average = update - radial * w
        if ADAM:
            tl.store(data[3] + columns, square, mask=inside)
        tl.store(data[2] + columns, average, mask=inside)
        tl.store(data[0] + columns, moved, mask=inside)
        if ROUNDED:
            tl.store(data[4] + columns, moved.to(data[4].dtype.element_ty), mask=inside)


@triton.jit
def _waits(tables, tensor):
    """Whether u·w is a sum over several tiles."""
    layout, _, _, decisions, count, _ = tables
    mode = _field(decisions, MODE, count, tensor)
    return (mode == AS_A_WHOLE) | ((mode == BY_CHANNEL) & (_field(layout, PIECES, count, tensor) > 1))


@triton.jit
def _step(
    tables, tensor, number, rule,
    ADAM: tl.constexpr, NESTEROV: tl.constexpr, PROJECT_BUFFER: tl.constexpr, ROUNDED: tl.constexpr,
    LATE: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr, PIECE: tl.constexpr, R: tl.constexpr,
    B: tl.constexpr,
):  # fmt: skip
    """Update a tile; or, if it depends on other tiles, write its part of u·w."""
    layout, addresses, sums, decisions, count, total = tables
    row, exists, length, first, last, place = _tile(layout, count, tensor, number, ALIGNED, PIECE, R)
    data = (
        _address(addresses, WEIGHT, count, tensor, tl.float32, ALIGNED) + row * length,
        _address(addresses, GRADIENT, count, tensor, TYPE, ALIGNED) + row * length,
        _address(addresses, AVERAGE, count, tensor, tl.float32, ALIGNED) + row * length,
        _address(addresses, SQUARE, count, tensor, tl.float32, ALIGNED) + row * length,
        _address(addresses, IMAGE, count, tensor, TYPE, ALIGNED) + row * length,
    )
    mode = _field(decisions, MODE, count, tensor)
    root = _field(decisions, ROOT, count, tensor)
    u_on_w = tl.zeros([R, 1], tl.float32)
    w_on_w = tl.zeros([R, 1], tl.float32)
    if LATE:
        u_on_w, w_on_w = _over_programs(tables, tensor, mode, row, exists, B)
    elif mode != AS_IT_IS:
        u_on_w = _u_on_w(data, exists, first, last, root, rule, ADAM, NESTEROV, R, B)
        w_on_w = tl.load(sums + W_ON_W * total + place, mask=exists, other=0.0)
        tl.store(sums + U_ON_W * total + place, u_on_w, mask=exists)
    if LATE or not _waits(tables, tensor):
        norm = tl.sqrt(w_on_w) + rule[5]
        radial = tl.where(mode == AS_IT_IS, 0.0, u_on_w / (norm * norm))
        size = _field(decisions, SIZE, count, tensor)
        shrink = _field(decisions, SHRINK, count, tensor)
        _move(
            data, exists, first, last, radial, size, root, shrink, rule, ADAM, NESTEROV, PROJECT_BUFFER, ROUNDED, B
        )  # fmt: skip


@triton.jit
def step_kernel(
    layout, owners, addresses, sums, decisions, count, total, rule,
    ADAM: tl.constexpr, NESTEROV: tl.constexpr, PROJECT_BUFFER: tl.constexpr, ROUNDED: tl.constexpr,
    LATE: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr, PIECE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """See the module; LATE is the second launch, for tiles that depend on others.

    `rule`: factors of the average and of the gradient in it, Nesterov's additional factor of the gradient, factors of
    the average of squares and of the squared gradient in it, eps.
    """
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    tensor = tl.load(owners + number)
    tables = (layout, addresses, sums, decisions, count, total)
    if not LATE or _waits(tables, tensor):
        together = _field(layout, TOGETHER, count, tensor)
        if together == 16:
            _step(
                tables, tensor, number, rule, ADAM, NESTEROV, PROJECT_BUFFER, ROUNDED, LATE, TYPE, ALIGNED, PIECE,
                16, BLOCK // 16,
            )  # fmt: skip
        elif together == 4:
            _step(
                tables, tensor, number, rule, ADAM, NESTEROV, PROJECT_BUFFER, ROUNDED, LATE, TYPE, ALIGNED, PIECE,
                4, BLOCK // 4,
            )  # fmt: skip
        else:
            _step(
                tables, tensor, number, rule, ADAM, NESTEROV, PROJECT_BUFFER, ROUNDED, LATE, TYPE, ALIGNED, PIECE,
                1, BLOCK,
            )  # fmt: skip


def cut_of(dtype: torch.dtype, aligned: bool) -> dict[str, Any]:
    """The kernels' constants for cutting tensors into tiles."""
    block = sizes.BLOCK if aligned else sizes.BLOCK // 2  # an address for every number takes twice the registers
    return {"TYPE": TYPES[dtype], "ALIGNED": aligned, "PIECE": sizes.PIECE, "BLOCK": block}


def launch(batch: Sequence[tuple[TableRows, Pointers]], rule: UpdateRule, like: Tensor, aligned: bool) -> None:
    """Update parameters of any shape that have the dtype of `like`, of any shape, and are on its device.

    Their rows are contiguous in memory, in the same order of elements as their gradients and states, which are float32;
    `aligned`: four numbers of each can be read at a time.
    """
    layout = layout_of(tuple(seen for seen, _ in batch), like.device)
    addresses = addresses_of(tuple(pointers for _, pointers in batch), like.device)
    count, total, tiles = len(batch), layout.sums, len(layout.owners)
    sums, decisions = (torch.empty(shape, device=like.device) for shape in ((4, total), (5, count)))
    cut = cut_of(like.dtype, aligned)
    kinds = {
        "ADAM": rule.betas is not None,
        "NESTEROV": rule.again is not None,
        "PROJECT_BUFFER": rule.project_buffer,
        "ROUNDED": like.dtype != torch.float32,
    }
    with device_of(like):
        sums_kernel[(tiles,)](layout.table, layout.owners, addresses, sums, count, total, **cut, num_warps=WARPS)
        decide_kernel[(count,)](
            layout.table,
            addresses,
            sums,
            decisions,
            count,
            total,
            *map(float, (rule.rate, rule.decay, rule.wd_ratio, rule.delta, rule.eps)),
            *rule.log_betas,
            ADAM=kinds["ADAM"],
            D=ROWS_OF_A_DECISION,
            num_warps=WARPS,
        )
        for late in (False, True):
            step_kernel[(tiles,)](
                layout.table,
                layout.owners,
                addresses,
                sums,
                decisions,
                count,
                total,
                rule.numbers,
                LATE=late,
                **kinds,
                **cut,
                num_warps=WARPS,
            )
