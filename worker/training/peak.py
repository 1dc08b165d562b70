"""Peak rate of the machine's matrix products, with which the rate of training is compared."""

from __future__ import annotations

import time
from functools import cache
from typing import NamedTuple

import torch

A100 = 312e12
DATA_SHEETS = {
    "NVIDIA A10": 125e12,
    "NVIDIA A100-PCIE-40GB": A100,
    "NVIDIA A100-SXM4-40GB": A100,
    "NVIDIA A100-SXM4-80GB": A100,
    "NVIDIA A100 80GB PCIe": A100,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}
"""Operations per second in bf16 with sums in float32, for dense matrices, by NVIDIA's data sheets (half of the rate
where these give that of sparse ones)."""
SIDE = {"cpu": 384, "cuda": 4096}
"""Rows and columns of the multiplied matrices: enough for the full rate, in a millisecond or two."""
RUNS = 5
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Peak(NamedTuple):
    """The highest rate of matrix products."""

    flops_per_second: float
    source: str
    """`data sheet`, or `measured`."""


def peak_of(device: torch.device, precision: str) -> Peak:
    """The rate of `device` in the precision of a job (`Recipe.precision`), with the current number of threads.

    For known GPUs in bf16 it is that of their data sheet. All others are measured once per process by matrix products,
    the fastest of a few, which takes a few milliseconds.
    """
    if device.type == "cuda" and precision == "bf16":
        known = DATA_SHEETS.get(torch.cuda.get_device_name(device))
        if known is not None:
            return Peak(known, "data sheet")
    return Peak(_measured(str(device), DTYPES[precision], torch.get_num_threads()), "measured")


@cache
def _measured(device: str, dtype: torch.dtype, threads: int) -> float:
    """Operations per second; `threads` is only part of the cache's key."""
    side = SIDE[torch.device(device).type]
    generator = torch.Generator(device).manual_seed(0)  # does not change the random state of training
    left, right = (torch.randn(side, side, generator=generator, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(_seconds(left, right) for _ in range(1 + RUNS))


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    begin = _now(left.device)
    torch.mm(left, right)
    return _now(left.device) - begin


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
