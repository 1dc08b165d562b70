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
"""Code of the failure of a process that lost another one, whose own failure is the cause."""


def failed(error: BaseException) -> Failed:
    """The result of a job that ended by `error`, which is being handled; internal details go to stderr only."""
    problem = _explain(error)
    if problem.__cause__ is not None or problem is not error:
        traceback.print_exc(file=sys.stderr)
    fields = {"code": problem.code, "message": problem.message, "param": problem.param, "step": problem.step}
    return Failed(fault=problem.fault, **fields)


def _explain(error: BaseException) -> JobError:
    """The error as its owner sees it, without internal details."""
    if isinstance(error, JobError):
        return error
    if _is_out_of_memory(error):
        return CapacityError("out_of_memory", "memory ran out; a smaller batch_size or a larger accumulate needs less")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return CapacityError("disk_full", "the worker's disk is full")
    if is_lost(error):
        return SystemFault(RANK_LOST, "another process of the job ended")
    return SystemFault("internal_error", "the trainer had an internal error; its log has the details")


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. torch reports it on the CPU as a plain RuntimeError, recognised by its text."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
