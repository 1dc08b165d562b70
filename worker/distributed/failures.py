"""Failures of a job, explained from the exceptions behind them."""

from __future__ import annotations

import errno
import sys
import traceback

import torch

from worker.distributed.ranks import is_lost
from worker.errors import CapacityError, JobError, SystemFault
from worker.protocol import Failed

RANK_LOST = "rank_lost"
"""Code of the failure of a process that misses another one, which knows better what happened."""


def failed(error: BaseException) -> Failed:
    """The end of a job by an error that is being handled; what is not for its owner goes to stderr."""
    problem = _explain(error)
    if problem.__cause__ is not None or problem is not error:
        traceback.print_exc(file=sys.stderr)
    about = {"code": problem.code, "message": problem.message, "param": problem.param, "step": problem.step}
    return Failed(fault=problem.fault, **about)


def _explain(error: BaseException) -> JobError:
    """Nothing internal is told."""
    if isinstance(error, JobError):
        return error
    if _is_out_of_memory(error):
        return CapacityError("out_of_memory", "memory ran out; a smaller batch_size or a larger accumulate needs less")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return CapacityError("disk_full", "the worker's disk is full")
    if is_lost(error):
        return SystemFault(RANK_LOST, "another process of the job went away")
    return SystemFault("internal_error", "the trainer met an error of its own; its log has the details")


def _is_out_of_memory(error: BaseException) -> bool:
    """torch reports a failed allocation on the CPU as a plain RuntimeError, known by its text."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
