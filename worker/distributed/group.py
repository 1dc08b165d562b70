"""The process group of a job: where its processes meet."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from app.recipe.job import Sharding
from worker.distributed.ranks import PATIENCE, DataParallel
from worker.distributed.shards import FullyShardedDataParallel


def join(device: torch.device, sharding: Sharding = "none", number: int | None = None) -> DataParallel:
    """Meet the other ranks where the launcher's environment says: by NCCL between GPUs, by Gloo between CPUs.

    `number` is this one's among them, where the launcher has another order.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    size = int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        backend, timeout=PATIENCE, rank=int(os.environ["RANK"]) if number is None else number, world_size=size
    )
    return DataParallel() if sharding == "none" else FullyShardedDataParallel(device)
