"""Sigmoid attention in Triton, block by block of queries and keys, so that no weights are stored.

The weights of a block need nothing of other blocks: there is no running maximum, no sum, and the backward pass computes
them again from queries and keys alone. Products are accumulated in float32.

Names: M queries and B keys of a block, D the size of a head, padded to a power of 2. Separate from
`worker.kernels.sigmoid_attention` because Triton is not available on every machine.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.kernels.devices import device_of

QUERIES, KEYS, LEAST_HEAD, LARGE_HEAD = 64, 64, 16, 64
"""Sizes of a block, the smallest size of a head that a product of matrices takes, and the largest with whole blocks."""


@triton.jit
def _load(pointer, rows, columns, length, SIZE):
    """A block (M, D) of contiguous rows of SIZE numbers, zeros beyond both ends."""
    inside = (rows[:, None] < length) & (columns[None, :] < SIZE)
    return tl.load(pointer + rows[:, None] * SIZE + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store(pointer, rows, columns, block, length, SIZE):
    inside = (rows[:, None] < length) & (columns[None, :] < SIZE)
    tl.store(pointer + rows[:, None] * SIZE + columns[None, :], block.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _weights(query, key, queries, keys, tokens, bias, scale, before, after, q_len, k_len, PADDED: tl.constexpr):
    """Weights (M, B) of a block in float32; 0 for keys that a query does not see."""
    products = tl.dot(query, tl.trans(key), input_precision="ieee") * scale + bias
    # sigmoid by one exponential of a number that is not positive
    small = tl.exp(-tl.abs(products))
    weights = tl.where(products >= 0.0, 1.0, small) / (1.0 + small)
    later = keys[None, :] - (queries[:, None] + k_len - q_len)
    seen = (later >= -before) & (later <= after) & (keys[None, :] < k_len) & (queries[:, None] < q_len)
    if PADDED:
        real = tl.load(tokens + keys, mask=keys < k_len, other=0)
        seen = seen & (real[None, :] != 0)
    return tl.where(seen, weights, 0.0)


@triton.jit
def _forward(
    q, k, v, tokens, out, bias, scale, before, after, heads, groups, q_len, k_len, SIZE: tl.constexpr, D: tl.constexpr,
    M: tl.constexpr, B: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """A block of outputs: its queries with all keys that one of them may see."""
    row, sample, head = tl.program_id(1), tl.program_id(1) // heads, tl.program_id(1) % heads
    shared = (sample * groups + head * groups // heads).to(tl.int64)
    queries, columns = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, D)
    query = _load(q + row.to(tl.int64) * q_len * SIZE, queries, columns, q_len, SIZE)
    first, last = tl.program_id(0) * M + k_len - q_len, tl.program_id(0) * M + M - 1 + k_len - q_len
    mixed = tl.zeros((M, D), tl.float32)
    for start in range(tl.maximum(first - before, 0) // B * B, tl.minimum(last + after + 1, k_len), B):
        keys = start + tl.arange(0, B)
        key = _load(k + shared * k_len * SIZE, keys, columns, k_len, SIZE)
        value = _load(v + shared * k_len * SIZE, keys, columns, k_len, SIZE)
        weights = _weights(
            query,
            key,
            queries,
            keys,
            tokens + sample * k_len,
            bias,
            scale,
            before,
            after,
            q_len,
            k_len,
            PADDED,
        )
        mixed += tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    _store(out + row.to(tl.int64) * q_len * SIZE, queries, columns, mixed, q_len, SIZE)


@triton.jit
def _backward_queries(
    q, k, v, tokens, given, grad, bias, scale, before, after, heads, groups, q_len, k_len, SIZE: tl.constexpr,
    D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of queries; `given` is that of the outputs."""
    row, sample, head = tl.program_id(1), tl.program_id(1) // heads, tl.program_id(1) % heads
    shared = (sample * groups + head * groups // heads).to(tl.int64)
    queries, columns = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, D)
    query = _load(q + row.to(tl.int64) * q_len * SIZE, queries, columns, q_len, SIZE)
    outer = _load(given + row.to(tl.int64) * q_len * SIZE, queries, columns, q_len, SIZE)
    first, last = tl.program_id(0) * M + k_len - q_len, tl.program_id(0) * M + M - 1 + k_len - q_len
    summed = tl.zeros((M, D), tl.float32)
    for start in range(tl.maximum(first - before, 0) // B * B, tl.minimum(last + after + 1, k_len), B):
        keys = start + tl.arange(0, B)
        key = _load(k + shared * k_len * SIZE, keys, columns, k_len, SIZE)
        value = _load(v + shared * k_len * SIZE, keys, columns, k_len, SIZE)
        weights = _weights(
            query,
            key,
            queries,
            keys,
            tokens + sample * k_len,
            bias,
            scale,
            before,
            after,
            q_len,
            k_len,
            PADDED,
        )
        slopes = weights * (1.0 - weights) * tl.dot(outer, tl.trans(value), input_precision="ieee")
        summed += tl.dot(slopes.to(key.dtype), key, input_precision="ieee")
    _store(grad + row.to(tl.int64) * q_len * SIZE, queries, columns, summed * scale, q_len, SIZE)


@triton.jit
def _backward_keys(
    q, k, v, tokens, given, grad_k, grad_v, bias, scale, before, after, heads, groups, q_len, k_len, SIZE: tl.constexpr,
    D: tl.constexpr, M: tl.constexpr, B: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values, summed over the heads of queries that share them."""
    row, sample, shared = tl.program_id(1).to(tl.int64), tl.program_id(1) // groups, tl.program_id(1) % groups
    keys, columns = tl.program_id(0) * B + tl.arange(0, B), tl.arange(0, D)
    key = _load(k + row * k_len * SIZE, keys, columns, k_len, SIZE)
    value = _load(v + row * k_len * SIZE, keys, columns, k_len, SIZE)
    first, last = (
        tl.program_id(0) * B - (k_len - q_len),
        tl.program_id(0) * B + B - 1 - (k_len - q_len),
    )
    of_keys, of_values = tl.zeros((B, D), tl.float32), tl.zeros((B, D), tl.float32)
    for head in range(shared * (heads // groups), (shared + 1) * (heads // groups)):
        base = (sample * heads + head).to(tl.int64) * q_len * SIZE
        for start in range(tl.maximum(first - after, 0) // M * M, tl.minimum(last + before + 1, q_len), M):
            queries = start + tl.arange(0, M)
            query = _load(q + base, queries, columns, q_len, SIZE)
            outer = _load(given + base, queries, columns, q_len, SIZE)
            weights = _weights(
                query,
                key,
                queries,
                keys,
                tokens + sample * k_len,
                bias,
                scale,
                before,
                after,
                q_len,
                k_len,
                PADDED,
            )
            of_values += tl.dot(tl.trans(weights).to(outer.dtype), outer, input_precision="ieee")
            slopes = weights * (1.0 - weights) * tl.dot(outer, tl.trans(value), input_precision="ieee")
            of_keys += tl.dot(tl.trans(slopes).to(query.dtype), query, input_precision="ieee")
    _store(grad_k + row * k_len * SIZE, keys, columns, of_keys * scale, k_len, SIZE)
    _store(grad_v + row * k_len * SIZE, keys, columns, of_values, k_len, SIZE)


def forward(
    query: Tensor, key: Tensor, value: Tensor, bias: float, tokens: Tensor | None, bounds: tuple[int, int]
) -> Tensor:
    """Outputs (N, H, Q, d) of `sigmoid_attention`; `tokens` is (N, K) bool, and `bounds` are the most keys before and
    after its place that a query sees."""
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    out, settings = torch.empty_like(query), _settings(query, tokens)
    grid = (triton.cdiv(query.shape[2], settings["M"]), query.shape[0] * query.shape[1])
    with device_of(query):
        _forward[grid](query, key, value, _flags(tokens, query), out, bias, *_sizes(query, key, bounds), **settings)
    return out


def backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gradient: Tensor,
    bias: float,
    tokens: Tensor | None,
    bounds: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, from that of the outputs (N, H, Q, d)."""
    query, key, value, gradient = (each.contiguous() for each in (query, key, value, gradient))
    grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    inputs, settings = (query, key, value, _flags(tokens, query), gradient), _settings(query, tokens)
    sizes = _sizes(query, key, bounds)
    with device_of(query):
        grid = (triton.cdiv(query.shape[2], settings["M"]), query.shape[0] * query.shape[1])
        _backward_queries[grid](*inputs, grads[0], bias, *sizes, **settings)
        grid = (triton.cdiv(key.shape[2], KEYS), key.shape[0] * key.shape[1])
        _backward_keys[grid](*inputs, grads[1], grads[2], bias, *sizes, **settings)
    return grads


def _sizes(query: Tensor, key: Tensor, bounds: tuple[int, int]) -> tuple[Any, ...]:
    """Scale, bounds, and numbers of heads, queries and keys."""
    return query.shape[3] ** -0.5, *bounds, query.shape[1], key.shape[1], query.shape[2], key.shape[2]


def _settings(query: Tensor, tokens: Tensor | None) -> dict[str, Any]:
    size = query.shape[3]
    padded = max(LEAST_HEAD, triton.next_power_of_2(size))
    return {"SIZE": size, "D": padded, "M": query_block(padded), "B": KEYS, "PADDED": tokens is not None}


def query_block(padded: int) -> int:
    """Queries of a block, so that all blocks of a program fit into the registers of its threads."""
    return QUERIES // 2 if padded > LARGE_HEAD else QUERIES


def _flags(tokens: Tensor | None, like: Tensor) -> Tensor:
    """`tokens` as bytes; without them a tensor that is not read."""
    return like if tokens is None else tokens.to(torch.int8).contiguous()
