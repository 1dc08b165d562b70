"""NVIDIA GPUs as listed by the driver's library NVML: without torch, and without starting CUDA."""

from __future__ import annotations

from typing import NamedTuple

import pynvml


class GpuInfo(NamedTuple):
    """A GPU of this machine."""

    number: int
    """Index in the driver's order."""
    uuid: str
    name: str
    memory_bytes: int


def list_gpus() -> list[GpuInfo]:
    """The GPUs of this machine; none if there is no driver, or it fails."""
    try:
        pynvml.nvmlInit()
        try:
            return [_gpu_info(index) for index in range(pynvml.nvmlDeviceGetCount())]
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return []


def _gpu_info(index: int) -> GpuInfo:
    device = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(device).total
    return GpuInfo(index, pynvml.nvmlDeviceGetUUID(device), pynvml.nvmlDeviceGetName(device), memory)
