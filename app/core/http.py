"""Middleware and error handlers of every request: its id, the limits of its parts, and the error envelope."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, DBAPIError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core import logs
from app.core.addresses import allowed_methods, operation, parameters
from app.core.database import DATABASE_LOST, first_line, is_lock_timeout
from app.core.errors import (
    MAX_ERRORS,
    ApiError,
    ErrorBody,
    ErrorEnvelope,
    FieldError,
    HeadersTooLarge,
    Invalid,
    InvalidRequest,
    TooLarge,
    Unavailable,
    UriTooLong,
)
from app.core.field_errors import MAX_HINTS, describe
from app.core.ids import new_id

log = logging.getLogger("stillhouse.http")
REQUEST_ID = "X-Request-Id"
_TO_BROWSERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""Security headers of every response: no type sniffing, no scripts, no framing."""
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_BODY_LIMIT, _HEAD = "body_limit", "head"
MAX_HEADERS, MAX_HEADER_BYTES = 100, 32 << 10
MAX_PATH_CHARACTERS = 1024
MAX_QUERY_BYTES, MAX_QUERY_PARAMETERS = 16 << 10, 100
_ROUTER_ERRORS = {404: ("not_found", "route_not_found"), 405: ("invalid_request", "method_not_allowed")}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Error responses for a route's `responses`."""
    return {status: {"model": ErrorEnvelope, "description": HTTPStatus(status).phrase} for status in sorted(statuses)}


def limit_body(request: Request, limit: int) -> None:
    """Set the limit of this request's body to `limit` bytes instead of the service's default."""
    request.scope["state"][_BODY_LIMIT] = limit


async def raw_body(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it is received, at most `limit` bytes; raises `TooLarge` beyond."""
    limit_body(request, limit)
    async for chunk in request.stream():
        if chunk:
            yield chunk


class RequestFrame:
    """Outermost middleware: assigns the request id, and handles the errors of the inner ones."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request_id = scope.setdefault("state", {})["request_id"] = _request_id(scope)
        logs.request_id.set(request_id)
        stamp = (REQUEST_ID.lower().encode(), request_id.encode())
        started = False

        async def stamped(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = _complete([*message["headers"], stamp])
            await send(message)

        try:
            await self.app(scope, receive, stamped)
        except ClientDisconnect:
            log.info("request %s: the client disconnected", request_id)
        except Exception as error:
            if started:
                raise  # the server closes the connection: the response has already begun
            handle = next((_HANDLERS[kind] for kind in type(error).__mro__ if kind in _HANDLERS), _unexpected)
            response = await handle(Request(scope), error)
            await response(scope, receive, stamped)


def _complete(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers with the defaults for browsers, unless they are set."""
    given = {name.lower() for name, _ in headers}
    return [*headers, *(header for header in _TO_BROWSERS if header[0] not in given)]


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(REQUEST_ID, "")
    return given if _SANE_ID.fullmatch(given) else new_id("req")


class RequestLimits:
    """Rejects addresses and headers larger than any route needs, before they are parsed."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            _require_small_headers(scope["headers"])
            _require_small_address(scope)
        await self.app(scope, receive, send)


def _require_small_headers(headers: Collection[tuple[bytes, bytes]]) -> None:
    if len(headers) > MAX_HEADERS:
        raise HeadersTooLarge("too_many_headers", f"the request has more than {MAX_HEADERS} headers")
    if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        raise HeadersTooLarge("headers_too_large", f"the headers have more than {MAX_HEADER_BYTES} bytes")


def _require_small_address(scope: Scope) -> None:
    path, query = scope["path"], scope["query_string"]
    if len(path) > MAX_PATH_CHARACTERS:
        raise UriTooLong("path_too_long", f"the path has more than {MAX_PATH_CHARACTERS} characters")
    if len(query) > MAX_QUERY_BYTES:
        raise UriTooLong("query_too_long", f"the query has more than {MAX_QUERY_BYTES} bytes")
    if query.count(b"&") >= MAX_QUERY_PARAMETERS:
        raise UriTooLong("too_many_parameters", f"the query has more than {MAX_QUERY_PARAMETERS} parameters")
    if "\0" in path or b"%00" in query:
        raise InvalidRequest("invalid_address", "the address contains a NUL")


class HeadAsGet:
    """Supports HEAD wherever GET is supported, with the same headers and without the body.

    The response ends before its body is produced: no file is read, and no stream begins.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self.app(scope, receive, send)
        scope["state"][_HEAD] = True

        async def headers_alone(message: Message) -> None:
            await send(message)
            await send({"type": "http.response.body", "body": b""})
            raise _Answered

        # The server must still see the HEAD request: it sends no body.
        with suppress(_Answered):
            await self.app({**scope, "method": "GET"}, receive, headers_alone)


class _Answered(Exception):
    """The complete response to a HEAD has been sent."""


def is_head(request: Request) -> bool:
    """Whether the request, which a route sees as a GET, is a HEAD."""
    return _HEAD in request.scope["state"]


class BodyLimit:
    """Rejects bodies that are too large, by their announced or received size, when they are read."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        size = 0

        async def limited() -> Message:
            nonlocal size
            announced = Headers(scope=scope).get("content-length", "0")
            limit = scope["state"].get(_BODY_LIMIT, self.limit)
            _require_within(int(announced) if announced.isdecimal() else 0, limit)
            message = await receive()
            size += len(message.get("body", b""))
            _require_within(size, limit)
            return message

        await self.app(scope, limited, send)


def _require_within(size: int, limit: int) -> None:
    if size > limit:
        raise TooLarge("body_too_large", f"the body has more than {limit} bytes")


def add_error_handlers(app: FastAPI) -> None:
    """Register the handlers that respond with the error envelope."""
    for kind, handle in _HANDLERS.items():
        app.add_exception_handler(kind, handle)


def _answer(scope: Scope, error: ApiError) -> JSONResponse:
    body = ErrorBody(
        type=error.type,
        code=error.code,
        message=error.message,
        param=error.param,
        errors=error.errors,
        more_errors=error.more_errors,
    )
    return _envelope(scope, error.status, body, error.headers)


def _envelope(scope: Scope, status: int, body: ErrorBody, headers: Mapping[str, str] | None) -> JSONResponse:
    body.request_id = scope.get("state", {}).get("request_id")
    return JSONResponse(ErrorEnvelope(error=body).model_dump(), status, headers=headers)


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    fields = (request.state.request_id, error.status, error.code, error.message)
    if error.status >= 500:
        log.warning("request %s: %d %s: %s", *fields, exc_info=error if error.__cause__ else None)
    else:
        log.info("request %s: %d %s: %s", *fields)
    return _answer(request.scope, error)


async def _http_exception(request: Request, error: Exception) -> Response:
    """The framework's own errors. A wrapped error from reading the body is more specific and is used instead."""
    assert isinstance(error, HTTPException)
    cause = error.__cause__
    if isinstance(cause, ApiError):
        return await _api_error(request, cause)
    if isinstance(cause, ClientDisconnect):
        raise cause
    type, code = _ROUTER_ERRORS.get(error.status_code, ("invalid_request", "bad_request"))
    headers = dict(error.headers or {})
    if error.status_code == 405:  # the router names the methods of one route, but others may share its address
        headers["Allow"] = ", ".join(allowed_methods(request))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    body = ErrorBody(type=type, code=code, message=str(error.detail))
    return _envelope(request.scope, error.status_code, body, headers)


async def _lost_database(request: Request, error: Exception) -> JSONResponse:
    log.warning("request %s: the database failed: %s", request.state.request_id, first_line(error))
    if isinstance(error, DBAPIError) and is_lock_timeout(error):
        message = "another request or a worker holds a lock on the rows that this request changes"
        return _answer(request.scope, Unavailable("database_busy", message, 1))
    return _answer(request.scope, Unavailable("database_unavailable", "the database can't be reached or is full"))


async def _unstorable(request: Request, error: Exception) -> JSONResponse:
    return _answer(request.scope, Invalid("unstorable_text", "a text contains a character that can't be stored"))


async def _invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    details = error.errors()
    for detail in details:
        if detail["type"] == "json_invalid":
            message = f"the body is not JSON: {detail['ctx']['error']} at character {detail['loc'][-1]}"
            return _answer(request.scope, InvalidRequest("malformed_json", message))
    of, document = operation(request), request.app.openapi()
    errors = [
        _field_error(of, document, detail, hint=number < MAX_HINTS)
        for number, detail in enumerate(details[:MAX_ERRORS])
    ]
    return _answer(request.scope, Invalid.fields(errors, more_errors=len(details) - len(errors)))


def _field_error(
    of: Mapping[str, Any], document: Mapping[str, Any], detail: Mapping[str, Any], *, hint: bool
) -> FieldError:
    place, *location = detail["loc"]
    if place == "body":
        schema = of.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        error = describe(detail, location, schema, document, hint=hint)
        return error if error.param else error.model_copy(update={"param": "body"})
    return describe(detail, location, parameters(of, place), document, hint=hint)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("request %s failed", request.state.request_id, exc_info=error)
    return _answer(
        request.scope, ApiError("internal_error", "an internal error occurred; the service's log has the details")
    )


_HANDLERS: dict[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
    ApiError: _api_error,
    HTTPException: _http_exception,
    RequestValidationError: _invalid_request,
    DataError: _unstorable,
    **dict.fromkeys(DATABASE_LOST, _lost_database),
}
"""Handlers by class of error. Any other error is internal, and is not described to the client."""
