"""One HTTP session with the service: the key, time-outs, retries, and errors as exceptions."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import inf
from typing import Any, Self

import httpx

from stillhouse.connection import Connection
from stillhouse.errors import FieldProblem, ServiceError, Unreachable

REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE"})
BUSY = frozenset({429, 503})
AWAY = BUSY | {500, 502, 504}
"""What a service answers, or a proxy before it, while it is being restarted."""
OUTAGE_SECONDS = 300.0
"""For so long watching, uploads and downloads outlast a service that is away, unless told otherwise."""
LONGEST_PAUSE_SECONDS = 60.0
LONGEST_PAUSE_BETWEEN_TRIES = 5.0


class Outage:
    """The failures in a row of what must outlast a restart of the service.

    It may last for `seconds` from the first of them on, and not beyond the time `until` of `time.monotonic()`. `over`
    is to be called when something has arrived.
    """

    def __init__(self, seconds: float, until: float | None = None) -> None:
        self._seconds, self._until = seconds, inf if until is None else until
        self._failures, self._began = 0, 0.0

    def over(self) -> None:
        """The service is back: what fails from here on is another outage."""
        self._failures = 0

    def wait(self, error: Exception) -> None:
        """Sleep before the next try; raises the error if the outage has lasted for too long or can't pass by itself."""
        if isinstance(error, ServiceError) and error.status not in AWAY:
            raise error
        if not self._failures:
            self._began = time.monotonic()
        asked = error.retry_after if isinstance(error, ServiceError) else None
        pause = _jittered(self._failures, LONGEST_PAUSE_BETWEEN_TRIES) if asked is None else asked
        if time.monotonic() + pause > min(self._began + self._seconds, self._until):
            raise error
        self._failures += 1
        time.sleep(pause)


class Transport:
    """Sends requests. One that may be repeated is, after a lost connection, a 429 or a 503 (minding `Retry-After`).

    `patient` gives one that outlasts restarts of the service.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        retries: int = 3,
        timeout_seconds: float = 30.0,
        outage_seconds: float = OUTAGE_SECONDS,
    ) -> None:
        self.url, self.retries, self.outage_seconds = connection.url, retries, outage_seconds
        self._patient = False
        self._until: float | None = None
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

    def patient(self, until: float | None = None) -> Self:
        """The same session, but requests that may be repeated are, for `outage_seconds` of a service that is away.

        `until` is a time of `time.monotonic()`, after which they are not either.
        """
        patient = copy(self)
        patient._patient, patient._until = True, until
        return patient

    def outage(self) -> Outage:
        """A count of failures in a row."""
        return Outage(self.outage_seconds, self._until)

    def send(self, method: str, path: str, *, repeatable: bool | None = None, **options: Any) -> httpx.Response:
        """Send a request whose answer fits in memory."""
        may_repeat = method in REPEATABLE if repeatable is None else repeatable
        if self._patient and may_repeat:
            return self._outlast(method, path, options)
        return self._try(method, path, options, may_repeat=may_repeat)

    def _outlast(self, method: str, path: str, options: dict[str, Any]) -> httpx.Response:
        outage = self.outage()
        while True:
            try:
                return checked(self._http.request(method, path, **options))
            except httpx.TransportError as error:
                outage.wait(self.unreachable(error))
            except ServiceError as error:
                outage.wait(error)

    def _try(self, method: str, path: str, options: dict[str, Any], *, may_repeat: bool) -> httpx.Response:
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                response = self._http.request(method, path, **options)
            except httpx.ConnectError as error:  # nothing was sent, so any request may be repeated
                if last:
                    raise self.unreachable(error) from None
            except httpx.TransportError as error:
                if last or not may_repeat:
                    raise self.unreachable(error) from None
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

    def unreachable(self, error: httpx.TransportError) -> Unreachable:
        """What a lost connection is to callers."""
        return Unreachable(f"{self.url} does not answer: {str(error) or type(error).__name__}")


def checked(response: httpx.Response) -> httpx.Response:
    """Return the response if it is a success; else raise the `ServiceError` that its body describes."""
    if not response.is_error:
        return response
    try:
        body = response.json()["error"]
        errors = [FieldProblem.model_validate(problem) for problem in body.get("errors") or []]
        known = {name: body.get(name) for name in ("param", "request_id")}
        error = ServiceError(
            response.status_code, type=body["type"], code=body["code"], message=body["message"], errors=errors, **known
        )
    except (ValueError, KeyError, TypeError):
        message = f"{response.status_code} {response.reason_phrase}"
        error = ServiceError(response.status_code, type="http", code="unexpected_answer", message=message)
    error.retry_after = _retry_after(response)
    raise error


def pause_seconds(attempt: int, response: httpx.Response | None = None) -> float:
    """How long to wait before the next attempt: as the service asks, or else 0.2 s, 0.4 s, … with some jitter."""
    asked = None if response is None else _retry_after(response)
    return _jittered(attempt, LONGEST_PAUSE_SECONDS) if asked is None else asked


def _jittered(attempt: int, most: float) -> float:
    """A pause that doubles with the tries up to `most`, and differs between clients of one service."""
    return min(most, 0.2 * float(1 << min(attempt, 16))) * random.uniform(0.75, 1.25)  # noqa: S311 - no secret


def _retry_after(response: httpx.Response) -> float | None:
    """For how many seconds the service asks to wait; none where it does not."""
    asked = response.headers.get("Retry-After")
    if asked is None:
        return None
    try:
        seconds = float(asked) if asked.isdecimal() else _seconds_until(parsedate_to_datetime(asked))
    except ValueError:
        return 1.0
    return min(LONGEST_PAUSE_SECONDS, max(0.0, seconds))


def _seconds_until(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - time.time()
