"""Time limits for slow or silent HTTP clients.

uvicorn limits only how long a connection stays open between two requests. This protocol adds limits for the headers,
for each section of a body, and for a client to receive a response. A disconnected client can reconnect.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.core.errors import ErrorBody, ErrorEnvelope
from app.core.settings import Settings

MAX_HEAD_BYTES = 64 << 10
MAX_PIPELINED = 128
"""Requests of one connection that may wait for the responses before them."""
log = logging.getLogger("stillhouse.connection")


@dataclass(frozen=True)
class Waits:
    """Time limits for a client, in seconds, and the most connections."""

    header: float
    body: float
    """For `body_bytes` of a body."""
    body_bytes: int
    write: float
    """For a client to receive what was sent to it."""
    connections: int

    @classmethod
    def from_settings(cls, settings: Settings) -> Waits:
        return cls(
            header=settings.header_seconds,
            body=settings.body_seconds,
            body_bytes=round(settings.body_seconds * settings.min_bytes_per_second),
            write=settings.write_seconds,
            connections=settings.max_connections,
        )


def _raw(status: str, type: str, code: str, message: str, *headers: str) -> bytes:
    """A complete response with the error envelope, sent without the application."""
    body = ErrorEnvelope(error=ErrorBody(type=type, code=code, message=message)).model_dump_json()
    fields = ("content-type: application/json", f"content-length: {len(body)}", "connection: close", *headers)
    return "\r\n".join((f"HTTP/1.1 {status}", *fields, "", body)).encode()


TOO_SLOW = _raw("408 Request Timeout", "timeout", "request_timeout", "the request was sent too slowly")
MALFORMED = _raw(
    "400 Bad Request",
    "invalid_request",
    "malformed_request",
    f"not a valid HTTP request, or more than {MAX_PIPELINED} requests were sent before the first response",
)
TOO_LONG = _raw(
    "431 Request Header Fields Too Large",
    "invalid_request",
    "headers_too_large",
    f"the headers have more than {MAX_HEAD_BYTES} bytes",
)
TOO_MANY = _raw(
    "503 Service Unavailable", "unavailable", "too_many_connections", "too many connections are open", "retry-after: 5"
)


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's protocol with a limit for every wait; `waits` is set by `connection_class`."""

    waits: Waits
    _reading: asyncio.TimerHandle | None = None
    """Runs while a request is expected or received."""
    _writing: asyncio.TimerHandle | None = None
    _head = 0
    """Bytes of the headers so far."""
    _received = 0
    """Bytes of the body since the last check."""
    _was_paused = False
    """Whether the server, not the client, has delayed the body since the last check."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        super().connection_made(transport)
        if len(self.connections) > self.waits.connections:
            transport.write(TOO_MANY)
            transport.close()
        else:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_reading_clock()
        self._stop_writing_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._reading is None and self._is_between_requests():
            self._expect_headers()
            self._head = 0
        self._head += len(data)
        super().data_received(data)
        if self._is_between_requests() and self._head > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(TOO_LONG)
            self.transport.close()

    def _is_between_requests(self) -> bool:
        return self.cycle is None or (self.cycle.response_complete and not self.cycle.more_body)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many pipelined requests")  # the parser ends the connection with a 400
        self._received, self._was_paused = 0, False
        self._start(self.waits.body, self._check_body)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._received += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop_reading_clock()
        self.cycle.more_body = False  # uvicorn leaves it if the response was sent before the body was received
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Continue reading only when all pipelined requests have responses.

        uvicorn reads more data with each response, so that an endless sequence of requests would fill the memory.
        """
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._writing is None:
            self._writing = self.loop.call_later(self.waits.write, self._give_up, "a response was not received")

    def resume_writing(self) -> None:
        self._stop_writing_clock()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self._give_up("a response was not received")
        else:
            super().timeout_keep_alive_handler()

    def _expect_headers(self) -> None:
        self._start(self.waits.header, self._refuse)

    def _check_body(self) -> None:
        """Check whether enough of the body was received; a pause by the server does not count."""
        paused = self.flow.read_paused or self.cycle.waiting_for_100_continue
        if self._received < self.waits.body_bytes and not paused and not self._was_paused:
            return self._refuse()
        self._received, self._was_paused = 0, paused
        self._start(self.waits.body, self._check_body)

    def send_400_response(self, msg: str) -> None:
        """Respond to malformed HTTP, or too many pipelined requests, and end the connection."""
        self.transport.write(MALFORMED)
        self.transport.close()

    def _refuse(self) -> None:
        """End a connection whose request does not arrive, with a response unless one was begun."""
        self._reading = None
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            return self._give_up("a body was sent too slowly")
        log.info("%s: a request was sent too slowly", self.client)
        if self.cycle is None or not self.cycle.response_complete:
            self.transport.write(TOO_SLOW)
        self.transport.close()

    def _give_up(self, why: str) -> None:
        log.info("%s: %s", self.client, why)
        self.transport.abort()

    def _start(self, seconds: float, then: Callable[[], Any]) -> None:
        self._stop_reading_clock()
        self._reading = self.loop.call_later(seconds, then)

    def _stop_reading_clock(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _stop_writing_clock(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None


def connection_class(settings: Settings) -> type[BoundedConnection]:
    """The protocol class with the time limits of these settings, for uvicorn."""
    return type("Connection", (BoundedConnection,), {"waits": Waits.from_settings(settings)})
