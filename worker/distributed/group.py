"""Joins the process group of a job."""

from __future__ import annotations

import torch
import torch.distributed as dist

from app.recipe.job import Sharding
from worker.distributed.ranks import TIMEOUT, DataParallel
from worker.distributed.shards import FullyShardedDataParallel


def join(device: torch.device, sharding: Sharding = "none") -> DataParallel:
    """Join the other ranks at the address in the launcher's environment: by NCCL between GPUs, by Gloo between CPUs."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    return DataParallel() if sharding == "none" else FullyShardedDataParallel(device)
