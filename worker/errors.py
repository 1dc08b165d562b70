"""Errors that end a job, by whose fault they are."""

from __future__ import annotations

from typing import ClassVar, Literal

Fault = Literal["user", "system", "capacity"]


class JobError(Exception):
    """Ends the job; `message` is shown to its owner, `code` is stable, `param` is the path of the field at fault.

    `step` is the optimizer step at which it occurred, if any.
    """

    fault: ClassVar[Fault]

    def __init__(self, code: str, message: str, param: str | None = None, step: int | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param, self.step = code, message, param, step


class UserError(JobError):
    """An error in the client's job or files; a retry does not help."""

    fault = "user"


class CapacityError(JobError):
    """This machine is too small for the job."""

    fault = "capacity"


class SystemFault(JobError):
    """A known error of the service."""

    fault = "system"


def unusable_model(message: str, param: str) -> UserError:
    """The error for a stored model that the field `param` names; `message` follows "the teacher" or "the student"."""
    whose = "student" if param.startswith("student") else "teacher"
    return UserError(f"invalid_{whose}", f"the {whose} {message}", param)
