"""Joins the process group of a job."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from app.recipe.job import Sharding
from worker.distributed.ranks import TIMEOUT, DataParallel
from worker.distributed.shards import FullyShardedDataParallel


def join(device: torch.device, sharding: Sharding = "none", number: int | None = None) -> DataParallel:
    """Join the other ranks at the address in the launcher's environment: by NCCL between GPUs, by Gloo between CPUs.

    `number` is this process's rank, if it differs from the launcher's.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    size = int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        backend, timeout=TIMEOUT, rank=int(os.environ["RANK"]) if number is None else number, world_size=size
    )
    return DataParallel() if sharding == "none" else FullyShardedDataParallel(device)
