"""One HTTP session with the service: the key, time-outs, retries, and errors as exceptions."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from app.cli.connection import Connection
from app.cli.errors import FieldProblem, ServiceError, Unreachable

REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE"})
BUSY = frozenset({429, 503})
LONGEST_PAUSE_SECONDS = 60.0


class Transport:
    """Sends requests. One that may be repeated is, after a lost connection, a 429 or a 503 (minding `Retry-After`)."""

    def __init__(self, connection: Connection, *, retries: int = 3, timeout_seconds: float = 30.0) -> None:
        self.url, self.retries = connection.url, retries
        self._http = httpx.Client(
            base_url=connection.url,
            headers={"Authorization": f"Bearer {connection.key}", "User-Agent": "stillhouse-client"},
            timeout=httpx.Timeout(timeout_seconds, connect=5.0),
        )

    def close(self) -> None:
        self._http.close()

    def json(self, method: str, path: str, **options: Any) -> Any:
        """Send a request and return the decoded body; none when it is empty. Raises `ServiceError`, `Unreachable`."""
        response = self.send(method, path, **options)
        return response.json() if response.content else None

    def send(self, method: str, path: str, *, repeatable: bool | None = None, **options: Any) -> httpx.Response:
        """Send a request whose answer fits in memory."""
        may_repeat = method in REPEATABLE if repeatable is None else repeatable
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                response = self._http.request(method, path, **options)
            except httpx.ConnectError as error:  # nothing was sent, so any request may be repeated
                if last:
                    raise self._unreachable(error) from None
            except httpx.TransportError as error:
                if last or not may_repeat:
                    raise self._unreachable(error) from None
            else:
                if response.status_code not in BUSY or last or not may_repeat:
                    return checked(response)
                time.sleep(pause_seconds(attempt, response))
                continue
            time.sleep(pause_seconds(attempt))
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def stream(
        self, path: str, headers: dict[str, str], *, redirects: bool = False, silence_seconds: float | None = None
    ) -> Iterator[httpx.Response]:
        """GET an answer that is read piece by piece. The key is not sent along when a redirect leads elsewhere.

        Reading raises `httpx.ReadTimeout` after `silence_seconds` (by default the session's time-out) of silence.
        """
        timeout = self._http.timeout if silence_seconds is None else httpx.Timeout(silence_seconds, connect=5.0)
        with self._http.stream("GET", path, headers=headers, follow_redirects=redirects, timeout=timeout) as response:
            if response.is_error:
                response.read()
            yield checked(response)

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        return Unreachable(f"{self.url} does not answer: {str(error) or type(error).__name__}")


def checked(response: httpx.Response) -> httpx.Response:
    """Return the response if it is a success; else raise the `ServiceError` that its body describes."""
    if not response.is_error:
        return response
    try:
        body = response.json()["error"]
        errors = [FieldProblem.model_validate(problem) for problem in body.get("errors") or []]
        known = {name: body.get(name) for name in ("param", "request_id")}
        raise ServiceError(
            response.status_code, type=body["type"], code=body["code"], message=body["message"], errors=errors, **known
        )
    except (ValueError, KeyError, TypeError):
        message = f"{response.status_code} {response.reason_phrase}"
        raise ServiceError(response.status_code, type="http", code="unexpected_answer", message=message) from None


def pause_seconds(attempt: int, response: httpx.Response | None = None) -> float:
    """How long to wait before the next attempt: as the service asks, or else 0.2 s, 0.4 s, … with some jitter."""
    asked = response.headers.get("Retry-After") if response is not None else None
    if asked is None:
        return min(LONGEST_PAUSE_SECONDS, 0.2 * float(1 << attempt) * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
    try:
        seconds = float(asked) if asked.isdecimal() else _seconds_until(parsedate_to_datetime(asked))
    except ValueError:
        return 1.0
    return min(LONGEST_PAUSE_SECONDS, max(0.0, seconds))


def _seconds_until(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - time.time()
