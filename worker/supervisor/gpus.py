"""The GPUs of a worker process: as many as its settings say, each held by a lock on a file.

Trainers inherit the locks. So a GPU whose supervisor was killed stays taken until the last trainer on it has gone too.
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
    """This machine has no GPU, or all of them are taken."""


@dataclass(frozen=True)
class Gpu:
    """One GPU, held until the lock is closed; `uuid` is what `CUDA_VISIBLE_DEVICES` takes."""

    uuid: str
    lock: BinaryIO


async def hold_gpus(locks: Path, count: int = 1, patience_seconds: float = 10.0) -> tuple[Gpu, ...]:
    """Take the first `count` GPUs that are free, or none of them; `locks` is the folder of the lock files.

    Waits a little, since the trainer of a worker that was killed takes a moment to go. Raises `NoGpu`.
    """
    found = await asyncio.to_thread(visible_gpus)
    if not found:
        raise NoGpu(
            "the worker serves the queue gpu, but NVIDIA's driver shows no GPU that CUDA_VISIBLE_DEVICES allows"
        )
    if count > len(found):
        raise NoGpu(f"STILLHOUSE_WORKER_GPUS asks for {count} GPUs, and this machine shows {len(found)}")
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
    for gpu in held:  # somebody else may need fewer
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
