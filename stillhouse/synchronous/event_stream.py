# Generated from stillhouse/asynchronous/event_stream.py by scripts/sync_client.py; change that and run it again.
"""Live events of a job, over any number of connections."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx

from stillhouse.event_parser import EventParser
from stillhouse.objects import Event, Job
from stillhouse.requests import resource
from stillhouse.synchronous.transport import Transport

SILENCE_SECONDS = 45.0
"""Longest time without data on a stream of events; the service sends a comment every 15 seconds."""


class EventStream:
    """Events of a job from number `after` + 1 on, up to the final one, each once.

    `deadline` is a time of `time.monotonic()`.
    """

    def __init__(self, transport: Transport, job_id: str, *, after: int, deadline: float | None) -> None:
        self._transport, self._job, self._deadline = (
            transport.patient(deadline),
            resource("jobs", job_id),
            deadline,
        )
        self._job_id, self._after = job_id, after
        self._connection = ExitStack()
        self._lines: Iterator[str] | None = None
        self._parser = EventParser()
        self._came = False
        """Whether an event was received over the current connection."""
        self._rest: deque[Event] | None = None
        """Remaining events once the job is final; None before."""

    def next(self) -> Event | None:
        """The next event, None after the last one.

        Raises `ServiceError`, `Unreachable`, and `TimeoutError` after the deadline.
        """
        return self._transport.outlast(self._next)

    def close(self) -> None:
        """End the connection, if there is one."""
        self._lines = None
        self._connection.close()

    def _next(self) -> Event | None:
        """One try. An error ends the connection, and the next try opens another one."""
        while self._rest is None:
            if self._lines is None and self._is_final():
                break
            try:
                event = self._read()
            except httpx.ReadTimeout:  # no data or the deadline; the next request shows whether the service responds
                event = None
            except Exception:
                self.close()
                raise
            if event is not None:
                return event
            self.close()
            if self._deadline is not None and time.monotonic() > self._deadline:
                raise TimeoutError(f"job {self._job_id} is not final yet")
        return self._rest.popleft() if self._rest else None

    def _is_final(self) -> bool:
        """Check whether the job is final, and if so fetch the remaining events."""
        response = self._transport.send_once("GET", self._job)
        if not Job.model_validate(response.json()).is_final:
            return False
        self._rest = deque(events_after(self._transport, self._job_id, self._after))
        return True

    def _read(self) -> Event | None:
        """The next event of the connection, which is opened if there is none; None at its end."""
        if self._lines is None:
            self._connect()
        assert self._lines is not None
        for line in self._lines:
            event = self._parser.feed(line)
            if event is not None and event.seq > self._after:
                self._after, self._came = event.seq, True
                return event
        if not self._came:
            raise httpx.RemoteProtocolError("the stream of events ended before the first one")
        return None

    def _connect(self) -> None:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(self._after)} if self._after else {})
        left = SILENCE_SECONDS if self._deadline is None else self._deadline - time.monotonic()
        silence = max(0.001, min(SILENCE_SECONDS, left))
        streaming = self._transport.stream(f"{self._job}/events", headers, silence_seconds=silence)
        response = self._connection.enter_context(streaming)
        self._lines, self._parser, self._came = response.iter_lines(), EventParser(), False


def events_after(transport: Transport, job_id: str, after: int) -> list[Event]:
    """Events of a job so far, from number `after` + 1 on."""
    events: list[Event] = []
    more = True
    while more:
        seen = events[-1].seq if events else after
        page: dict[str, Any] = transport.json("GET", resource("jobs", job_id, "events"), params={"after": seen})
        events += [Event.model_validate(item) for item in page["data"]]
        more = page["has_more"]
    return events
