"""Measures the cost of running a model: operations, latency, throughput."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

RUNS = 100
SECONDS = 0.5
"""Longest time for measuring the latency, and again for the throughput; one run is always measured."""
BATCH = 64
Call = Callable[[Tensor], object]


def flops(model: Call, sample: Tensor) -> int:
    """Floating-point operations of a forward pass on one sample (1, …) of the model's input dtype; a multiplication
    with its addition are two.

    Only matrix products, convolutions and attention are counted: elementwise work (activations, normalisation,
    preprocessing) is left out. Attention runs unfused for it, since some fused kernels are not counted.
    """
    with torch.no_grad(), _unfused(), FlopCounterMode(display=False) as counter:
        model(sample)
    return int(counter.get_total_flops())


@contextlib.contextmanager
def _unfused() -> Iterator[None]:
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@torch.inference_mode()
def speed(call: Call, samples: Tensor, prefix: str = "") -> dict[str, float]:
    """Speed of `call` on `samples` (N, …) of the model's input dtype, on their device; the names begin with `prefix`.

    `latency_ms_p50` and `latency_ms_p95`: milliseconds from one sample to its outputs, over at most 100 calls or half a
    second. `samples_per_second`: in batches of up to 64, fewer for a model that would take longer than half a second.
    """
    times = 1e3 * np.array(_times(call, samples[:1], warm_ups=3))
    median = float(np.percentile(times, 50))
    batch = samples[: max(1, min(BATCH, int(1e3 * SECONDS / median)))]
    return {
        f"{prefix}latency_ms_p50": median,
        f"{prefix}latency_ms_p95": float(np.percentile(times, 95)),
        f"{prefix}samples_per_second": len(batch) / float(np.median(_times(call, batch, warm_ups=1))),
    }


def _times(call: Call, batch: Tensor, warm_ups: int) -> list[float]:
    """Seconds of each call after the warm-ups, with the device synchronised."""
    for _ in range(warm_ups):
        call(batch)
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < RUNS and (time.perf_counter() < end or not times):
        _wait_for(batch.device)
        start = time.perf_counter()
        call(batch)
        _wait_for(batch.device)
        times.append(time.perf_counter() - start)
    return times


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
