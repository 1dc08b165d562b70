"""Unsuccessful ends of an attempt, and what each one writes into the job's row."""

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
"""Code of the failure of an attempt that could not resume from its checkpoint; also reported by the trainer."""


class Ending(Exception):
    """The attempt has ended."""

    salvage: bool = True
    """Whether a checkpoint that is not published yet should be uploaded."""


@dataclass(eq=False)
class HandBack(Ending):
    """The trainer was stopped. The job is cancelled, paused or queued again, depending on its row."""

    reason: str
    salvage: bool = True


@dataclass(eq=False)
class Failure(Ending):
    """The attempt failed; `app.jobs.requeue` decides whether the job is retried."""

    fault: Fault
    code: str
    message: str
    param: str | None = None
    cause: Cause = "trainer"
    salvage: bool = True


def reported(last: Failed) -> Failure:
    """The failure that a trainer has reported."""
    return Failure(last.fault, last.code, last.message, last.param, _CAUSES.get(last.code, "trainer"))


_CAUSES: dict[str, Cause] = {TRAINER_KILLED: "outside", NODE_LOST: "outside", BAD_CHECKPOINT: "service"}


def failure_from(error: Exception) -> Failure:
    """The failure for an exception in the worker. The exception's own text is only for the log."""
    match error:
        case NotStarted(killed=killed):
            return _not_started(killed=killed)
        case ProtocolError() | UnsafePath():
            return Failure("system", "trainer_protocol", "the trainer sent a message that can't be parsed")
        case UserError(code=code, message=message, param=param):
            return Failure("user", code, message, param)
        case ConversionFailed():
            return _service("conversion_failed", "the process that converts the teacher could not be run")
        case BadCheckpoint():
            return _service(BAD_CHECKPOINT, "the checkpoint to resume from is missing or damaged", salvage=False)
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
    """The failure of a dependency of the attempt."""
    return Failure("system", code, message, cause="service", salvage=salvage)
