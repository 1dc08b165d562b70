"""NVIDIA's GPUs, as the driver's library NVML lists them: without torch, and without starting CUDA."""

from __future__ import annotations

from typing import NamedTuple

import pynvml


class GpuInfo(NamedTuple):
    """A GPU of this machine."""

    number: int
    """In the driver's order."""
    uuid: str
    name: str
    memory_bytes: int


def list_gpus() -> list[GpuInfo]:
    """The GPUs of this machine; none without a driver, or with one that fails."""
    try:
        pynvml.nvmlInit()
        try:
            return [_look_at(index) for index in range(pynvml.nvmlDeviceGetCount())]
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return []


def _look_at(index: int) -> GpuInfo:
    device = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(device).total
    return GpuInfo(index, pynvml.nvmlDeviceGetUUID(device), pynvml.nvmlDeviceGetName(device), memory)
