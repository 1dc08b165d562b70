"""How an attempt can end short of success, and what each ending writes into the job's row."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from app.core.errors import Unavailable
from app.core.store import Damaged, KeyTaken, MissingObject
from app.jobs.leases import Fault
from worker.convert import ConversionFailed
from worker.errors import UserError
from worker.fetch.hub import HubUnavailable
from worker.staging import BadCheckpoint, UnsafePath
from worker.trainer_process import NotStarted, ProtocolError

BAD_CHECKPOINT = "bad_checkpoint"
"""Code of the failure of an attempt that could not go on from its checkpoint; the trainer says it too."""


class Ending(Exception):
    """The attempt is over."""

    salvage: bool = True
    """Whether a checkpoint that is not published yet is worth its upload."""


@dataclass(eq=False)
class HandBack(Ending):
    """The trainer was told to leave. The job is cancelled, paused or queued again, as its row says by now."""

    reason: str
    salvage: bool = True


@dataclass(eq=False)
class Failure(Ending):
    """The attempt failed; whether the job is tried again is decided where its life is kept."""

    fault: Fault
    code: str
    message: str
    param: str | None = None
    salvage: bool = True


def failure_from(error: Exception) -> Failure:
    """What an exception in the worker means for the job. The exception's own text is for the log alone."""
    match error:
        case NotStarted():
            return Failure("system", "trainer_not_started", "no trainer could be started")
        case ProtocolError() | UnsafePath():
            return Failure("system", "trainer_protocol", "the trainer said something that can't be understood")
        case UserError(code=code, message=message, param=param):
            return Failure("user", code, message, param)
        case ConversionFailed():
            return Failure("system", "conversion_failed", "the process that converts the teacher could not be run")
        case BadCheckpoint():
            return Failure(
                "system", BAD_CHECKPOINT, "the checkpoint to go on from is missing or damaged", salvage=False
            )
        case HubUnavailable():
            return Failure("system", "hub_unavailable", "the model hub could not be reached", salvage=False)
        case Unavailable():
            return Failure("system", "store_unavailable", "the object store could not be reached", salvage=False)
        case MissingObject() | Damaged() | KeyTaken():
            return Failure("system", "damaged_object", "an object in the store is missing or damaged", salvage=False)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return Failure("capacity", "disk_full", "the worker's disk is full")
        case _:
            return Failure("system", "worker_error", "the worker failed")
