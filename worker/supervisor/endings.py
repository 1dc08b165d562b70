"""How an attempt can end short of success, and what each ending writes into the job's row."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from app.core.errors import Unavailable
from app.core.store import Damaged, KeyTaken, MissingObject
from app.jobs.leases import Fault
from app.jobs.requeue import Cause
from worker.convert import ConversionFailed
from worker.errors import UserError
from worker.fetch.hub import HubUnavailable
from worker.protocol import NODE_LOST, TRAINER_KILLED, Failed
from worker.supervisor.staging import BadCheckpoint, UnsafePath
from worker.supervisor.trainer_process import NotStarted, ProtocolError

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
    cause: Cause = "trainer"
    salvage: bool = True


def reported(last: Failed) -> Failure:
    """What a trainer's own last word means for the job."""
    return Failure(last.fault, last.code, last.message, last.param, _CAUSES.get(last.code, "trainer"))


_CAUSES: dict[str, Cause] = {TRAINER_KILLED: "outside", NODE_LOST: "outside", BAD_CHECKPOINT: "service"}


def failure_from(error: Exception) -> Failure:
    """What an exception in the worker means for the job. The exception's own text is for the log alone."""
    match error:
        case NotStarted(killed=killed):
            return _not_started(killed=killed)
        case ProtocolError() | UnsafePath():
            return Failure("system", "trainer_protocol", "the trainer said something that can't be understood")
        case UserError(code=code, message=message, param=param):
            return Failure("user", code, message, param)
        case ConversionFailed():
            return _service("conversion_failed", "the process that converts the teacher could not be run")
        case BadCheckpoint():
            return _service(BAD_CHECKPOINT, "the checkpoint to go on from is missing or damaged", salvage=False)
        case HubUnavailable():
            return _service("hub_unavailable", "the model hub could not be reached", salvage=False)
        case Unavailable():
            return _service("store_unavailable", "the object store could not be reached", salvage=False)
        case MissingObject() | Damaged() | KeyTaken():
            return _service("damaged_object", "an object in the store is missing or damaged", salvage=False)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return Failure("capacity", "disk_full", "the worker's disk is full", cause="service")
        case _:
            return _service("worker_error", "the worker failed")


def _not_started(*, killed: bool) -> Failure:
    if killed:
        return Failure("system", TRAINER_KILLED, "the trainer was killed while it started", cause="outside")
    return _service("trainer_not_started", "no trainer could be started")


def _service(code: str, message: str, *, salvage: bool = True) -> Failure:
    """Something failed that the attempt stands on."""
    return Failure("system", code, message, cause="service", salvage=salvage)
