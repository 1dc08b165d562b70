"""The states of a job and the table of legal moves between them. `app.jobs.moves` makes a move."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """State of a job."""

    VALIDATING = "validating"
    QUEUED = "queued"
    LEASED = "leased"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


FINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED})
"""States that are never left."""
HELD = frozenset({Status.LEASED, Status.RUNNING, Status.PAUSING, Status.CANCELLING})
"""States in which a worker holds a lease."""


@dataclass(frozen=True)
class Move:
    """A legal change of status. A fenced one is made only under the lease token that its caller has seen."""

    sources: frozenset[Status]
    target: Status
    fenced: bool = False
    outcome: str | None = None
    """How the attempt ended, for moves that take the job from its worker."""


def _from(*sources: Status) -> frozenset[Status]:
    return frozenset(sources)


_S = Status
ADMIT = Move(_from(_S.VALIDATING), _S.QUEUED)
CLAIM = Move(_from(_S.QUEUED), _S.LEASED)  # of two workers, the second finds the job no longer queued
START = Move(_from(_S.LEASED), _S.RUNNING, fenced=True)

# A worker may finish while a request to cancel or pause is on its way to it: the result counts.
SUCCEED = Move(HELD - {_S.LEASED}, _S.SUCCEEDED, fenced=True, outcome="succeeded")
FAIL = Move(HELD, _S.FAILED, fenced=True, outcome="failed")
RETRY = Move(_from(_S.LEASED, _S.RUNNING), _S.QUEUED, fenced=True, outcome="failed")
INTERRUPT = Move(_from(_S.LEASED, _S.RUNNING), _S.QUEUED, fenced=True, outcome="interrupted")
RELEASE = Move(_from(_S.LEASED, _S.RUNNING), _S.QUEUED, fenced=True, outcome="released")
PAUSE = Move(_from(_S.PAUSING), _S.PAUSED, fenced=True, outcome="paused")
CANCEL = Move(_from(_S.CANCELLING), _S.CANCELLED, fenced=True, outcome="cancelled")

# Requests of users. A job that no worker holds is cancelled or paused at once.
CANCEL_IDLE = Move(_from(_S.VALIDATING, _S.QUEUED, _S.PAUSED), _S.CANCELLED)
REQUEST_CANCEL = Move(_from(_S.LEASED, _S.RUNNING, _S.PAUSING), _S.CANCELLING)
PAUSE_IDLE = Move(_from(_S.QUEUED), _S.PAUSED)
REQUEST_PAUSE = Move(_from(_S.LEASED, _S.RUNNING), _S.PAUSING)
RESUME = Move(_from(_S.PAUSED), _S.QUEUED)

# Moves of the reaper. They name the token that was seen, so that a worker which has just reclaimed the job keeps it.
LOSE = Move(_from(_S.LEASED, _S.RUNNING), _S.QUEUED, fenced=True, outcome="lost")
GIVE_UP = Move(_from(_S.LEASED, _S.RUNNING), _S.FAILED, fenced=True, outcome="lost")
LOSE_CANCELLING = Move(_from(_S.CANCELLING), _S.CANCELLED, fenced=True, outcome="lost")
LOSE_PAUSING = Move(_from(_S.PAUSING), _S.PAUSED, fenced=True, outcome="lost")
EXPIRE = Move(_from(_S.VALIDATING, _S.QUEUED, _S.PAUSED), _S.EXPIRED)

MOVES = (
    *(ADMIT, CLAIM, START, SUCCEED, FAIL, RETRY, INTERRUPT, RELEASE, PAUSE, CANCEL),
    *(CANCEL_IDLE, REQUEST_CANCEL, PAUSE_IDLE, REQUEST_PAUSE, RESUME),
    *(LOSE, GIVE_UP, LOSE_CANCELLING, LOSE_PAUSING, EXPIRE),
)
"""All moves."""
