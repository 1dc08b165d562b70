"""JSON bodies: checks of their media type, and limits that bound the time of validation."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from app.core.errors import InvalidRequest, UnsupportedMediaType, shortened

JSON = "application/json"
MAX_DEPTH = 32
"""Levels of nested lists and objects; a job has half as many."""
MAX_KEYS = 5000
"""Keys of all objects of a body: twice as many as in the largest accepted one, a model with 1,024 renames."""
MAX_COUNTS = {b"[": 20_000, b"{": 20_000, b":": 20_000, b",": 120_000}
"""Most occurrences of these characters in a body, texts included. Before parsing, they bound the number of lists,
objects, keys and items; the longest accepted list has 100,000 classes."""


class JsonRoute(APIRoute):
    """A route that checks a JSON body against the limits above."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handle_body(request: Request) -> Response:
            _require_json(request)
            return await handle(_JsonRequest(request.scope, request.receive))

        return handle_body


def _require_json(request: Request) -> None:
    """Raises `UnsupportedMediaType` for a body with another Content-Type, or none."""
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return  # there is no body
    given = request.headers.get("content-type")
    kind = Message()
    kind["content-type"] = given or "text/plain"
    if kind.get_content_type() == JSON or kind.get_content_subtype().endswith("+json"):
        return
    found = "the request has a body but no Content-Type" if given is None else f"the body is {shortened(given, 64)!r}"
    raise UnsupportedMediaType("unsupported_media_type", f"{found}; accepted: {JSON}", param="Content-Type")


class _JsonRequest(Request):
    async def json(self) -> Any:
        """The parsed body. Raises `InvalidRequest` if it exceeds a limit, `JSONDecodeError` if it is not JSON."""
        if not hasattr(self, "_json"):
            self._json = _parsed(await self.body())
        return self._json


def _parsed(body: bytes) -> Any:
    for mark, limit in MAX_COUNTS.items():
        if body.count(mark) > limit:
            message = f"the body has the character {mark.decode()} more than {limit} times"
            raise InvalidRequest("body_too_complex", message, param="body")
    try:
        found = json.loads(body)
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise InvalidRequest("malformed_json", f"the body is not JSON: {_reason(error)}", param="body") from None
    _require_bounds(found)
    return found


def _reason(error: ValueError) -> str:
    return "it is not in UTF-8" if isinstance(error, UnicodeDecodeError) else "a number has too many digits"


def _too_deep() -> InvalidRequest:
    return InvalidRequest("body_too_complex", f"the body has more than {MAX_DEPTH} nested levels", param="body")


def _require_bounds(document: Any) -> None:
    keys, level = 0, [document]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                keys += len(node)
                inner += node.values()
            elif isinstance(node, list):
                inner += node
        if keys > MAX_KEYS:
            raise InvalidRequest("body_too_complex", f"the body has more than {MAX_KEYS} keys", param="body")
        level = [node for node in inner if isinstance(node, dict | list)]
        if not level:
            return
    raise _too_deep()
