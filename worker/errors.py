"""What can end a job, and whose fault each is."""

from __future__ import annotations

from typing import ClassVar, Literal

Fault = Literal["user", "system", "capacity"]


class JobError(Exception):
    """Ends the job; `message` is shown to its owner, `code` is stable, `param` is the path of the field to blame.

    `step` is the optimizer step at which it showed, when it was one.
    """

    fault: ClassVar[Fault]

    def __init__(self, code: str, message: str, param: str | None = None, step: int | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param, self.step = code, message, param, step


class UserError(JobError):
    """Something in what the client asked or uploaded; trying again won't help."""

    fault = "user"


class CapacityError(JobError):
    """This machine is too small for the job."""

    fault = "capacity"


class SystemFault(JobError):
    """Something of ours went wrong, and we know what."""

    fault = "system"


def unusable_model(message: str, param: str) -> UserError:
    """A stored model that the field `param` names is at fault: `message` goes on from "the teacher", or the student."""
    whose = "student" if param.startswith("student") else "teacher"
    return UserError(f"invalid_{whose}", f"the {whose} {message}", param)
