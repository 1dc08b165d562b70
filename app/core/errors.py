"""Errors for clients. Each class has one status; one handler turns them into the envelope.

`{"error": {"type", "code", "message", "param", "errors", "more_errors", "request_id"}}`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field

from app.core.views import View

MAX_ERRORS = 50
"""Invalid fields that one response describes; the rest is counted."""
MAX_PARAM, MAX_MESSAGE, MAX_ACCEPTED = 256, 2000, 4000
"""Most characters of one text of an error, which may quote the request."""


def shortened(text: str, limit: int) -> str:
    """The text, truncated to `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _bounded(limit: int) -> BeforeValidator:
    """Makes a text that may quote a client fit for a response: short, and without unpaired surrogates."""
    return BeforeValidator(lambda text: text and shortened(text.encode("utf-8", "backslashreplace").decode(), limit))


Param = Annotated[str, _bounded(MAX_PARAM)]
Words = Annotated[str, _bounded(MAX_MESSAGE)]
Accepted = Annotated[str, _bounded(MAX_ACCEPTED)]


class FieldError(View):
    """One invalid field: its path, the fault, and what would be accepted."""

    param: Param
    """Path of the field as the client wrote it, such as `recipe.losses[0].weight`."""
    message: Words
    """The fault."""
    accepted: Accepted | None = None
    """Accepted values, in words; null if there is nothing to add."""


class ErrorBody(View):
    """An error, for programs (`type`, `code`, `param`) and for people (`message`)."""

    type: str
    """Class of the error, such as `invalid_request`, `authentication`, `not_found`, `conflict` or `unavailable`."""
    code: str
    """Name of the error, stable between versions."""
    message: Words
    """Description of the error, in one sentence."""
    param: Param | None = None
    """The field, parameter or header that is invalid; null if none is."""
    errors: Annotated[list[FieldError], Field(max_length=MAX_ERRORS)] = []
    """All invalid fields of an `invalid_fields`, at most fifty."""
    more_errors: int = Field(0, ge=0)
    """Number of invalid fields that `errors` omits."""
    request_id: str | None = None
    """Id of the request, as in the header `X-Request-Id` and in the service's log."""


class ErrorEnvelope(View):
    """Body of every response that is not a success."""

    error: ErrorBody
    """The error."""


class ApiError(Exception):
    """Base of the errors for clients."""

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
    """The request is malformed."""

    status, type = 400, "invalid_request"


class Unauthorized(ApiError):
    """No key, or not a valid one."""

    status, type = 401, "authentication"


class Forbidden(ApiError):
    """The key lacks a scope."""

    status, type = 403, "permission"


class NotFound(ApiError):
    """The resource does not exist, or is not in the key's project."""

    status, type = 404, "not_found"

    def __init__(self, kind: str, id: str, *, param: str | None = None) -> None:
        super().__init__(f"{kind}_not_found", f"there is no {kind} {id!r}", param=param)


class WrongState(ApiError):
    """The state of the resource does not allow the request."""

    status, type = 409, "conflict"


class TooLarge(ApiError):
    """The body, part or file exceeds a limit."""

    status, type = 413, "too_large"


class UriTooLong(ApiError):
    """The address exceeds a limit."""

    status, type = 414, "too_large"


class UnsupportedMediaType(ApiError):
    """The route does not accept the body's media type."""

    status, type = 415, "invalid_request"


class RangeNotSatisfiable(ApiError):
    """The range is outside the file, or is not a single range of bytes."""

    status, type = 416, "invalid_request"


class Invalid(ApiError):
    """The request is well-formed, but its content is invalid."""

    status, type = 422, "invalid_request"

    @classmethod
    def fields(cls, errors: Sequence[FieldError], more_errors: int = 0) -> Invalid:
        """All invalid fields, and how many more there are; message and param are those of the first."""
        first = errors[0]
        message = f"{first.param}: {first.message}"
        return cls("invalid_fields", message, param=first.param, errors=errors, more_errors=more_errors)


class HeadersTooLarge(ApiError):
    """The headers exceed a limit."""

    status, type = 431, "too_large"


class TooMany(ApiError):
    """The key has reached a limit of concurrent work; retry when some of it has ended."""

    status, type = 429, "rate_limited"

    def __init__(self, code: str, message: str, retry_after_seconds: int = 5) -> None:
        super().__init__(code, message, headers={"Retry-After": str(retry_after_seconds)})


class Unavailable(ApiError):
    """The database or the store can't be reached, or is full. Nothing was published; retry."""

    status, type = 503, "unavailable"

    def __init__(self, code: str, message: str, retry_after_seconds: int = 5) -> None:
        super().__init__(code, message, headers={"Retry-After": str(retry_after_seconds)})
