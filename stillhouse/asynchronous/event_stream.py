"""Live events of a job, over any number of connections."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx

from stillhouse.asynchronous.transport import AsyncTransport
from stillhouse.event_parser import EventParser
from stillhouse.objects import Event, Job
from stillhouse.requests import resource

SILENCE_SECONDS = 45.0
"""Longest time without data on a stream of events; the service sends a comment every 15 seconds."""


class AsyncEventStream:
    """Events of a job from number `after` + 1 on, up to the final one, each once.

    `deadline` is a time of `time.monotonic()`.
    """

    def __init__(self, transport: AsyncTransport, job_id: str, *, after: int, deadline: float | None) -> None:
        self._transport, self._job, self._deadline = (
            transport.patient(deadline),
            resource("jobs", job_id),
            deadline,
        )
        self._job_id, self._after = job_id, after
        self._connection = AsyncExitStack()
        self._lines: AsyncIterator[str] | None = None
        self._parser = EventParser()
        self._came = False
        """Whether an event was received over the current connection."""
        self._rest: deque[Event] | None = None
        """Remaining events once the job is final; None before."""

    async def next(self) -> Event | None:
        """The next event, None after the last one.

        Raises `ServiceError`, `Unreachable`, and `TimeoutError` after the deadline.
        """
        return await self._transport.outlast(self._next)

    async def close(self) -> None:
        """End the connection, if there is one."""
        self._lines = None
        await self._connection.aclose()

    async def _next(self) -> Event | None:
        """One try. An error ends the connection, and the next try opens another one."""
        while self._rest is None:
            if self._lines is None and await self._is_final():
                break
            try:
                event = await self._read()
            except httpx.ReadTimeout:  # no data or the deadline; the next request shows whether the service responds
                event = None
            except Exception:
                await self.close()
                raise
            if event is not None:
                return event
            await self.close()
            if self._deadline is not None and time.monotonic() > self._deadline:
                raise TimeoutError(f"job {self._job_id} is not final yet")
        return self._rest.popleft() if self._rest else None

    async def _is_final(self) -> bool:
        """Check whether the job is final, and if so fetch the remaining events."""
        response = await self._transport.send_once("GET", self._job)
        if not Job.model_validate(response.json()).is_final:
            return False
        self._rest = deque(await events_after(self._transport, self._job_id, self._after))
        return True

    async def _read(self) -> Event | None:
        """The next event of the connection, which is opened if there is none; None at its end."""
        if self._lines is None:
            await self._connect()
        assert self._lines is not None
        async for line in self._lines:
            event = self._parser.feed(line)
            if event is not None and event.seq > self._after:
                self._after, self._came = event.seq, True
                return event
        if not self._came:
            raise httpx.RemoteProtocolError("the stream of events ended before the first one")
        return None

    async def _connect(self) -> None:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(self._after)} if self._after else {})
        left = SILENCE_SECONDS if self._deadline is None else self._deadline - time.monotonic()
        silence = max(0.001, min(SILENCE_SECONDS, left))
        streaming = self._transport.stream(f"{self._job}/events", headers, silence_seconds=silence)
        response = await self._connection.enter_async_context(streaming)
        self._lines, self._parser, self._came = response.aiter_lines(), EventParser(), False


async def events_after(transport: AsyncTransport, job_id: str, after: int) -> list[Event]:
    """Events of a job so far, from number `after` + 1 on."""
    events: list[Event] = []
    more = True
    while more:
        seen = events[-1].seq if events else after
        page: dict[str, Any] = await transport.json("GET", resource("jobs", job_id, "events"), params={"after": seen})
        events += [Event.model_validate(item) for item in page["data"]]
        more = page["has_more"]
    return events
