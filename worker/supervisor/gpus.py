"""GPUs of a worker process: the number in its settings, each reserved by a lock on a file.

Trainers inherit the locks. So a GPU whose supervisor was killed stays reserved until the last trainer on it has ended.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from app.core.nvml import list_gpus
from worker.supervisor.staging import try_lock


class NoGpu(Exception):
    """This machine has too few GPUs, or too few free ones."""


@dataclass(frozen=True)
class Gpu:
    """One GPU, held until the lock is closed; `uuid` is what `CUDA_VISIBLE_DEVICES` takes."""

    uuid: str
    lock: BinaryIO


async def hold_gpus(locks: Path, count: int = 1, patience_seconds: float = 10.0) -> tuple[Gpu, ...]:
    """Reserve the first `count` GPUs that are free, or none of them; `locks` is the folder of the lock files.

    Waits up to `patience_seconds`, since the trainer of a killed worker takes a moment to end. Raises `NoGpu`.
    """
    found = await asyncio.to_thread(visible_gpus)
    if not found:
        raise NoGpu(
            "the worker serves the queue gpu, but NVIDIA's driver shows no GPU that CUDA_VISIBLE_DEVICES allows"
        )
    if count > len(found):
        raise NoGpu(f"STILLHOUSE_WORKER_GPUS is {count}, and this machine has {len(found)} GPUs")
    until = time.monotonic() + patience_seconds
    while not (gpus := _free_gpus(found, count, locks)):
        if time.monotonic() > until:
            raise NoGpu(_taken(len(found), count))
        await asyncio.sleep(0.2)
    return gpus


def _free_gpus(uuids: list[str], count: int, locks: Path) -> tuple[Gpu, ...]:
    held: list[Gpu] = []
    for uuid in uuids:
        if len(held) < count and (lock := try_lock(locks / uuid)) is not None:
            held.append(Gpu(uuid, lock))
    if len(held) == count:
        return tuple(held)
    for gpu in held:  # another worker may need fewer
        gpu.lock.close()
    return ()


def _taken(found: int, count: int) -> str:
    if count == 1:
        return f"all of the {found} GPUs are taken by other workers"
    return f"fewer than {count} of the {found} GPUs are free of other workers"


def visible_gpus() -> list[str]:
    """UUIDs of the GPUs that this process may use, in the driver's order."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = None if allowed is None else set(allowed.split(","))
    return [gpu.uuid for gpu in list_gpus() if named is None or {str(gpu.number), gpu.uuid} & named]
