"""Which GPU a worker takes. `nvidia-smi` is a script here: the choice must not depend on a machine that has one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from app.core.settings import Settings
from worker.supervisor.gpus import NoGpu, hold_gpus, visible_gpus
from worker.supervisor.poller import queues_of


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes `nvidia-smi` say something."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def says(listing: str, status: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<END\n{listing}\nEND\nexit {status}\n")
        program.chmod(0o755)

    return says


TWO = "0, GPU-aa\n1, GPU-bb"


def test_all_gpus_are_seen(machine: Callable[..., None]) -> None:
    machine(TWO)
    assert visible_gpus() == ["GPU-aa", "GPU-bb"]


@pytest.mark.parametrize(
    ("allowed", "seen"),
    [("1", ["GPU-bb"]), ("GPU-aa", ["GPU-aa"]), ("1,0", ["GPU-aa", "GPU-bb"]), ("", []), ("7", [])],
)
def test_only_allowed_gpus_are_seen(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch, allowed: str, seen: list[str]
) -> None:
    machine(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert visible_gpus() == seen


def test_a_driver_that_fails_shows_no_gpu(machine: Callable[..., None]) -> None:
    machine("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", status=9)
    assert visible_gpus() == []


def test_a_machine_without_driver_has_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []


def test_a_polling_worker_serves_the_gpu_of_its_machine_unless_told_what_to_serve(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STILLHOUSE_QUEUES", raising=False)
    machine("", status=9)
    assert queues_of(Settings()) == ["any", "cpu"]
    machine(TWO)
    assert queues_of(Settings()) == ["any", "cpu", "gpu"]
    assert queues_of(Settings(queues=["cpu"])) == ["cpu"]


async def test_each_worker_holds_another_gpu_until_none_is_left(machine: Callable[..., None], tmp_path: Path) -> None:
    machine(TWO)
    [first], [second] = await hold_gpus(tmp_path / "locks"), await hold_gpus(tmp_path / "locks")
    assert {first.uuid, second.uuid} == {"GPU-aa", "GPU-bb"}
    with pytest.raises(NoGpu, match="all of the 2 GPUs are taken"):
        await hold_gpus(tmp_path / "locks", patience_seconds=0.0)
    first.lock.close()
    [again] = await hold_gpus(tmp_path / "locks")
    assert again.uuid == first.uuid


async def test_a_worker_for_several_takes_all_of_them_or_none(machine: Callable[..., None], tmp_path: Path) -> None:
    machine(TWO)
    with pytest.raises(NoGpu, match="shall have 3 GPUs"):
        await hold_gpus(tmp_path / "locks", 3)
    [one] = await hold_gpus(tmp_path / "locks")
    with pytest.raises(NoGpu, match="fewer than 2 of the 2 GPUs"):
        await hold_gpus(tmp_path / "locks", 2, patience_seconds=0.0)
    [other] = await hold_gpus(tmp_path / "locks")
    for gpu in (one, other):
        gpu.lock.close()
    assert [gpu.uuid for gpu in await hold_gpus(tmp_path / "locks", 2)] == ["GPU-aa", "GPU-bb"]
