"""Joins and leaves the process group of a job."""

from __future__ import annotations

import atexit
import os
import sys

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


def leave() -> None:
    """Leave the group; when this process ends, it does so with status 0 and without the interpreter's teardown.

    Caches of torch hold the group where weights are divided, and its threads abort a process now and then that
    tears down the interpreter beneath them.
    """
    dist.destroy_process_group()
    atexit.register(_exit_at_once)


def _exit_at_once() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
