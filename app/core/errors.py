"""Errors that a client may see. Each class is one status; one handler turns them into the envelope.

`{"error": {"type", "code", "message", "param", "errors", "more_errors", "request_id"}}`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field

from app.core.views import View

MAX_ERRORS = 50
"""Wrong fields that one answer describes; the rest is counted."""
MAX_PARAM, MAX_MESSAGE, MAX_ACCEPTED = 256, 2000, 4000
"""Characters of one text of an error: what a client sent is repeated only so far."""


def shortened(text: str, most: int) -> str:
    """The text, or its beginning where it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _bounded(most: int) -> BeforeValidator:
    """Makes a text that may hold anything of a client's fit for an answer: short, and without halves of characters."""
    return BeforeValidator(lambda text: text and shortened(text.encode("utf-8", "backslashreplace").decode(), most))


Param = Annotated[str, _bounded(MAX_PARAM)]
Words = Annotated[str, _bounded(MAX_MESSAGE)]
Accepted = Annotated[str, _bounded(MAX_ACCEPTED)]


class FieldError(View):
    """One field that is wrong: its path, what is wrong, and what would be accepted."""

    param: Param
    """Path of the field as the client wrote it, such as `recipe.losses[0].weight`."""
    message: Words
    """What is wrong with it."""
    accepted: Accepted | None = None
    """What would be accepted there, in words; null where there is nothing to add."""


class ErrorBody(View):
    """What went wrong, for programs (`type`, `code`, `param`) and for people (`message`)."""

    type: str
    """Class of the error, such as `invalid_request`, `authentication`, `not_found`, `conflict` or `unavailable`."""
    code: str
    """Name of the error, which does not change between versions."""
    message: Words
    """What went wrong, in one sentence."""
    param: Param | None = None
    """The field, parameter or header that is wrong; null where none is."""
    errors: Annotated[list[FieldError], Field(max_length=MAX_ERRORS)] = []
    """All wrong fields of an `invalid_fields`, at most fifty."""
    more_errors: int = Field(0, ge=0)
    """Number of wrong fields that `errors` leaves out."""
    request_id: str | None = None
    """Id of the request, as in the header `X-Request-Id`; it finds the request in the service's log."""


class ErrorEnvelope(View):
    """Body of every answer that is not a success."""

    error: ErrorBody
    """The error."""


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
        errors: Sequence[FieldError] = (),
        more_errors: int = 0,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param
        self.errors = list(errors[:MAX_ERRORS])
        self.more_errors = more_errors + len(errors) - len(self.errors)
        self.headers = headers or {}


class InvalidRequest(ApiError):
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


class UriTooLong(ApiError):
    """The address exceeds a limit."""

    status, type = 414, "too_large"


class UnsupportedMediaType(ApiError):
    """The body is of a type that the route does not read."""

    status, type = 415, "invalid_request"


class RangeNotSatisfiable(ApiError):
    """The range lies outside the file, or is not one single range of bytes."""

    status, type = 416, "invalid_request"


class Invalid(ApiError):
    """The request can be read, but its content is not acceptable."""

    status, type = 422, "invalid_request"

    @classmethod
    def fields(cls, errors: Sequence[FieldError], more_errors: int = 0) -> Invalid:
        """All wrong fields at once, and how many more there are; message and param speak of the first."""
        first = errors[0]
        message = f"{first.param}: {first.message}"
        return cls("invalid_fields", message, param=first.param, errors=errors, more_errors=more_errors)


class HeadersTooLarge(ApiError):
    """The headers exceed a limit."""

    status, type = 431, "too_large"


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
