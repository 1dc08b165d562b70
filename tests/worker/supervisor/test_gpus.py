"""Which GPU a worker takes. The GPUs are made up: the choice must not depend on a machine that has one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from app.core.nvml import GpuInfo
from app.core.settings import Settings
from worker.supervisor import gpus
from worker.supervisor.gpus import NoGpu, hold_gpus, visible_gpus
from worker.supervisor.poller import queues_of


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives this machine GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def has(*uuids: str) -> None:
        found = [GpuInfo(index, uuid, "one", 80 << 30) for index, uuid in enumerate(uuids)]
        monkeypatch.setattr(gpus, "list_gpus", lambda: found)

    return has


TWO = ("GPU-aa", "GPU-bb")


def test_all_gpus_are_seen(machine: Callable[..., None]) -> None:
    machine(*TWO)
    assert visible_gpus() == ["GPU-aa", "GPU-bb"]


@pytest.mark.parametrize(
    ("allowed", "seen"),
    [("1", ["GPU-bb"]), ("GPU-aa", ["GPU-aa"]), ("1,0", ["GPU-aa", "GPU-bb"]), ("", []), ("7", [])],
)
def test_only_allowed_gpus_are_seen(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch, allowed: str, seen: list[str]
) -> None:
    machine(*TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert visible_gpus() == seen


def test_a_polling_worker_serves_the_gpu_of_its_machine_unless_told_what_to_serve(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STILLHOUSE_QUEUES", raising=False)
    machine()
    assert queues_of(Settings()) == ["any", "cpu"]
    machine(*TWO)
    assert queues_of(Settings()) == ["any", "cpu", "gpu"]
    assert queues_of(Settings(queues=["cpu"])) == ["cpu"]


async def test_each_worker_holds_another_gpu_until_none_is_left(machine: Callable[..., None], tmp_path: Path) -> None:
    machine(*TWO)
    [first], [second] = await hold_gpus(tmp_path / "locks"), await hold_gpus(tmp_path / "locks")
    assert {first.uuid, second.uuid} == {"GPU-aa", "GPU-bb"}
    with pytest.raises(NoGpu, match="all of the 2 GPUs are taken"):
        await hold_gpus(tmp_path / "locks", patience_seconds=0.0)
    first.lock.close()
    [again] = await hold_gpus(tmp_path / "locks")
    assert again.uuid == first.uuid


async def test_a_worker_for_several_takes_all_of_them_or_none(machine: Callable[..., None], tmp_path: Path) -> None:
    machine(*TWO)
    with pytest.raises(NoGpu, match="STILLHOUSE_WORKER_GPUS is 3"):
        await hold_gpus(tmp_path / "locks", 3)
    [one] = await hold_gpus(tmp_path / "locks")
    with pytest.raises(NoGpu, match="fewer than 2 of the 2 GPUs"):
        await hold_gpus(tmp_path / "locks", 2, patience_seconds=0.0)
    [other] = await hold_gpus(tmp_path / "locks")
    for gpu in (one, other):
        gpu.lock.close()
    assert [gpu.uuid for gpu in await hold_gpus(tmp_path / "locks", 2)] == ["GPU-aa", "GPU-bb"]
