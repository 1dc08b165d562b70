"""Order statistics of values that are computed some at a time, and never kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

DIGIT = 16
"""Bits by which a pass tells values apart."""
INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def ranked(values: Callable[[], Iterable[Tensor]], ranks: Tensor, dtype: torch.dtype) -> Tensor:
    """The values (R,) of `dtype`, float32 or float64, at the `ranks` (R,) int64, counted from 0 from the least on.

    `values` yields the same values (n,), without NaN, each time it is called, in parts. They are told apart by the
    digits of their bits, the first digit first (radix selection): two passes in float32 and four in float64, in the
    memory of a part.
    """
    bits, found = torch.iinfo(INTEGERS[dtype]).bits, torch.zeros_like(ranks)
    for shift in range(bits - DIGIT, -1, -DIGIT):
        counts = ranks.new_zeros(len(ranks), 1 << DIGIT)
        for part in values():
            keys = _keys(part) >> shift
            known = ((keys >> DIGIT) ^ found.unsqueeze(1)) & ((1 << bits - shift - DIGIT) - 1) == 0
            digits = keys & ((1 << DIGIT) - 1)
            counts += torch.stack([digits[same].bincount(minlength=1 << DIGIT) for same in known])
        totals = counts.cumsum(1)
        digit = torch.searchsorted(totals, ranks.unsqueeze(1), right=True)
        ranks = ranks - (totals - counts).gather(1, digit).squeeze(1)
        found = (found << DIGIT) | digit.squeeze(1)
    return _values(found, dtype)


def _keys(values: Tensor) -> Tensor:
    """Integers (n,) int64 whose bits, read without a sign, are in the order of floating `values` (n,)."""
    integer = INTEGERS[values.dtype]
    return _in_order(values.view(integer)).long() - torch.iinfo(integer).min


def _values(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `_keys`."""
    integer = INTEGERS[dtype]
    return _in_order((keys + torch.iinfo(integer).min).to(integer)).view(dtype)


def _in_order(bits: Tensor) -> Tensor:
    """The bits of floating numbers as integers in their order, and back: negative ones have all bits but the sign
    reversed."""
    limits = torch.iinfo(bits.dtype)
    return bits ^ ((bits >> limits.bits - 1) & limits.max)
