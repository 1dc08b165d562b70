"""GPUs of a machine, by a driver's library that is made up."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pynvml
import pytest

from app.core.nvml import GpuInfo, list_gpus

CALLS = {
    "nvmlInit": lambda: None,
    "nvmlShutdown": lambda: None,
    "nvmlDeviceGetCount": lambda: 2,
    "nvmlDeviceGetHandleByIndex": lambda index: index,
    "nvmlDeviceGetUUID": "GPU-{}".format,
    "nvmlDeviceGetName": "card {}".format,
    "nvmlDeviceGetMemoryInfo": lambda device: SimpleNamespace(total=80 << 30, used=1, free=2),
}


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the library's functions, which are given by name."""

    def behave(**calls: Callable[..., object]) -> None:
        for name, call in {**CALLS, **calls}.items():
            monkeypatch.setattr(pynvml, name, call)

    return behave


def _fails(code: int) -> Callable[..., object]:
    def fail(*_: object) -> None:
        raise pynvml.NVMLError(code)

    return fail


def test_gpus_are_listed_in_the_order_of_the_driver(driver: Callable[..., None]) -> None:
    driver()
    assert list_gpus() == [GpuInfo(0, "GPU-0", "card 0", 80 << 30), GpuInfo(1, "GPU-1", "card 1", 80 << 30)]


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("nvmlInit", pynvml.NVML_ERROR_LIBRARY_NOT_FOUND),
        ("nvmlInit", pynvml.NVML_ERROR_DRIVER_NOT_LOADED),
        ("nvmlDeviceGetCount", pynvml.NVML_ERROR_UNKNOWN),
        ("nvmlDeviceGetUUID", pynvml.NVML_ERROR_GPU_IS_LOST),
    ],
    ids=["no library", "no driver", "no count", "a lost GPU"],
)
def test_a_driver_that_is_missing_or_fails_shows_no_gpu(driver: Callable[..., None], call: str, code: int) -> None:
    closed: list[bool] = []
    driver(**{"nvmlShutdown": lambda: closed.append(True), call: _fails(code)})
    assert list_gpus() == []
    assert closed == ([] if call == "nvmlInit" else [True])
