"""Errors that a client may see. Each class is one status; one handler turns them into the envelope.

`{"error": {"type", "code", "message", "param", "errors", "request_id"}}`
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel


class FieldError(BaseModel):
    """One field that is wrong: its path, what is wrong, and what would be accepted."""

    param: str
    message: str
    accepted: str | None = None


class ErrorBody(BaseModel):
    """What went wrong, for programs (`type`, `code`, `param`) and for people (`message`)."""

    type: str
    code: str
    message: str
    param: str | None = None
    errors: list[FieldError] = []
    request_id: str | None = None


class ErrorEnvelope(BaseModel):
    """Body of every answer that is not a success."""

    error: ErrorBody


class ApiError(Exception):
    """Base of the errors that a client may see."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        errors: list[FieldError] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param
        self.errors = errors or []
        self.headers = headers or {}


class BadRequest(ApiError):
    """The request can't be read."""

    status, type = 400, "invalid_request"


class Unauthorized(ApiError):
    """No key, or not a valid one."""

    status, type = 401, "authentication"


class Forbidden(ApiError):
    """The key lacks a scope."""

    status, type = 403, "permission"


class NotFound(ApiError):
    """No such thing, or not in the key's project."""

    status, type = 404, "not_found"

    def __init__(self, kind: str, id: str, *, param: str | None = None) -> None:
        super().__init__(f"{kind}_not_found", f"there is no {kind} {id!r}", param=param)


class WrongState(ApiError):
    """The thing is in a state in which this can't be done."""

    status, type = 409, "conflict"


class TooLarge(ApiError):
    """The body, part or file exceeds a limit."""

    status, type = 413, "too_large"


class RangeNotSatisfiable(ApiError):
    """The range lies outside the file, or is not one single range of bytes."""

    status, type = 416, "invalid_request"


class Invalid(ApiError):
    """The request can be read, but its content is not acceptable."""

    status, type = 422, "invalid_request"

    @classmethod
    def fields(cls, errors: list[FieldError]) -> Invalid:
        """All wrong fields at once; message and param speak of the first."""
        first = errors[0]
        return cls("invalid_fields", f"{first.param}: {first.message}", param=first.param, errors=errors)


class TooMany(ApiError):
    """The key has as much under way as it may; try again when some of it has ended."""

    status, type = 429, "rate_limited"

    def __init__(self, code: str, message: str, retry_after_seconds: int = 5) -> None:
        super().__init__(code, message, headers={"Retry-After": str(retry_after_seconds)})


class Unavailable(ApiError):
    """The database or the store can't be reached, or is full. Nothing was published; try again."""

    status, type = 503, "unavailable"

    def __init__(self, code: str, message: str, retry_after_seconds: int = 5) -> None:
        super().__init__(code, message, headers={"Retry-After": str(retry_after_seconds)})
