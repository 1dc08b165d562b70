"""What every request passes through: its id, the limit of its body, and the one form in which errors are answered."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, DBAPIError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core import logs
from app.core.database import DATABASE_LOST, first_line, is_lock_timeout
from app.core.errors import ApiError, BadRequest, ErrorBody, ErrorEnvelope, FieldError, Invalid, TooLarge, Unavailable
from app.core.field_errors import describe
from app.core.ids import new_id

log = logging.getLogger("stillhouse.http")
REQUEST_ID = "X-Request-Id"
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_BODY_LIMIT = "body_limit"
_ROUTER_ERRORS = {404: ("not_found", "route_not_found"), 405: ("invalid_request", "method_not_allowed")}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Declare error answers for a route's `responses`."""
    return {status: {"model": ErrorEnvelope, "description": HTTPStatus(status).phrase} for status in sorted(statuses)}


def limit_body(request: Request, limit: int) -> None:
    """Let this request's body have up to `limit` bytes rather than what the service allows by default."""
    request.scope["state"][_BODY_LIMIT] = limit


async def raw_body(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it comes in, at most `limit` bytes; raises `TooLarge` beyond."""
    limit_body(request, limit)
    async for chunk in request.stream():
        if chunk:
            yield chunk


class RequestFrame:
    """Outermost: gives the request its id, and answers whatever nobody else has caught with a bare 500."""

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
                message["headers"] = [*message["headers"], stamp]
            await send(message)

        try:
            if "\0" in scope["path"] or b"%00" in scope["query_string"]:
                return await _answer(scope, BadRequest("invalid_address", "the address contains a NUL"))(
                    scope, receive, stamped
                )
            await self.app(scope, receive, stamped)
        except ClientDisconnect:
            log.info("request %s: the client left", request_id)
        except Exception:
            if started:
                raise  # the server breaks the connection off, which is all that is left to tell the client
            log.exception("request %s failed", request_id)
            await _answer(scope, ApiError("internal_error", "something went wrong on our side"))(
                scope, receive, stamped
            )


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(REQUEST_ID, "")
    return given if _SANE_ID.fullmatch(given) else new_id("req")


class BodyLimit:
    """Refuses bodies that are, or turn out, too large, at the moment that somebody reads them."""

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
    """Answer every error with the envelope."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(DataError, _unstorable)
    for lost in DATABASE_LOST:
        app.add_exception_handler(lost, _lost_database)


def _answer(scope: Scope, error: ApiError) -> JSONResponse:
    body = ErrorBody(type=error.type, code=error.code, message=error.message, param=error.param, errors=error.errors)
    return _envelope(scope, error.status, body, error.headers)


def _envelope(scope: Scope, status: int, body: ErrorBody, headers: Mapping[str, str] | None) -> JSONResponse:
    body.request_id = scope.get("state", {}).get("request_id")
    return JSONResponse(ErrorEnvelope(error=body).model_dump(), status, headers=headers)


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    said = (request.state.request_id, error.status, error.code, error.message)
    if error.status >= 500:
        log.warning("request %s: %d %s: %s", *said, exc_info=error if error.__cause__ else None)
    else:
        log.info("request %s: %d %s: %s", *said)
    return _answer(request.scope, error)


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    """The framework's own refusals. It wraps what went wrong while it read the body: that says more."""
    assert isinstance(error, HTTPException)
    cause = error.__cause__
    if isinstance(cause, ApiError):
        return await _api_error(request, cause)
    if isinstance(cause, ClientDisconnect):
        raise cause
    type, code = _ROUTER_ERRORS.get(error.status_code, ("invalid_request", "bad_request"))
    headers = dict(error.headers or {})
    if error.status_code == 405:  # the router names the methods of one route, but others may share its address
        headers["Allow"] = ", ".join(sorted(method.upper() for method in _operations(request)))
    body = ErrorBody(type=type, code=code, message=str(error.detail))
    return _envelope(request.scope, error.status_code, body, headers)


async def _lost_database(request: Request, error: Exception) -> JSONResponse:
    log.warning("request %s: the database failed: %s", request.state.request_id, first_line(error))
    if isinstance(error, DBAPIError) and is_lock_timeout(error):
        message = "another request or a worker holds what this request would change"
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
            return _answer(request.scope, BadRequest("malformed_json", message))
    return _answer(request.scope, Invalid.fields([_field_error(request, detail) for detail in details]))


def _field_error(request: Request, detail: Mapping[str, Any]) -> FieldError:
    place, *location = detail["loc"]
    operation = _operations(request).get(request.method.lower(), {})
    if place == "body":
        content = operation.get("requestBody", {}).get("content", {})
        schema = content.get("application/json", {}).get("schema", {})
        error = describe(detail, location, schema, request.app.openapi())
        return error if error.param else error.model_copy(update={"param": "body"})
    return describe(detail, location, _parameters(operation, place), request.app.openapi())


def _parameters(operation: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The parameters of one place (`query`, `path`, `header`) as the schema of an object."""
    declared = operation.get("parameters", ())
    return {"properties": {one["name"]: one["schema"] for one in declared if one["in"] == place}}


def _operations(request: Request) -> Mapping[str, Any]:
    """What the OpenAPI document has for this address, by method in small letters."""
    for template, operations in request.app.openapi()["paths"].items():
        if compile_path(template)[0].match(request.url.path):
            found: Mapping[str, Any] = operations
            return found
    return {}


async def known_query(request: Request) -> None:
    """A dependency that refuses query parameters which the route does not know: a mistyped filter must not pass."""
    if not request.query_params:
        return
    parameters = _parameters(_operations(request).get(request.method.lower(), {}), "query")
    unknown = [name for name in request.query_params if name not in parameters["properties"]]
    if unknown:
        detail = {"type": "extra_forbidden"}
        raise Invalid.fields([describe(detail, (name,), parameters, parameters) for name in unknown])
