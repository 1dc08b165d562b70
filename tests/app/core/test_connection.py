"""Slow and silent clients, by raw sockets; the times are tiny, and each test waits for the connection's end."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvicorn

from app.core import migrate
from app.core.connection import MAX_HEAD_BYTES, MAX_PIPELINED
from app.core.settings import Settings
from app.main import create_app
from app.projects import keys
from stillhouse.cli.embedded import _config, listen

KEY = keys.new_key()
TINY = {"header_seconds": 0.1, "body_seconds": 0.1, "min_bytes_per_second": 1e6, "write_seconds": 0.1}
AMPLE = {"header_seconds": 60.0, "body_seconds": 60.0, "min_bytes_per_second": 1e-3, "write_seconds": 60.0}
AUTH = f"Authorization: Bearer {KEY}\r\n"


async def until(holds: Callable[[], object]) -> None:
    while True:
        if holds():
            return
        await asyncio.sleep(0.01)


class Served:
    """The application under uvicorn in this loop, as `serve` and `up` run it."""

    def __init__(self, settings: Settings) -> None:
        migrate.upgrade(settings.resolved_database_url)
        self.listener = listen(settings)
        self.server = uvicorn.Server(_config(create_app(settings), settings))

    async def __aenter__(self) -> Served:
        self._task = asyncio.create_task(self.server.serve(sockets=[self.listener]))
        await until(lambda: self.server.started)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.should_exit = True
        await self._task

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.listener.getsockname()[:2])

    async def send(self, text: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self.connect()
        writer.write(text.encode())
        return reader, writer


async def ask_without_end(served: Served, sock: socket.socket, request: bytes, at_once: int) -> None:
    """Send requests, the next ones when the last are answered or the connection is gone."""
    state, sent = served.server.server_state, 0
    while True:
        await asyncio.get_running_loop().sock_sendall(sock, request * at_once)
        sent += at_once
        await until(lambda sent=sent: state.total_requests >= sent or not state.connections)


def settings(folder: Path, **changes: object) -> Settings:
    return Settings(data_dir=folder, port=0, bootstrap_key=KEY, **{**AMPLE, **changes})


@pytest.fixture
async def impatient(tmp_path: Path) -> AsyncIterator[Served]:
    async with Served(settings(tmp_path, **TINY)) as served:
        yield served


async def answer(reader: asyncio.StreamReader) -> tuple[int, str]:
    """Status and code of an error that ends its connection."""
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize("begun", ["", "GET /v1/jobs HT", "GET /v1/jobs HTTP/1.1\r\nHost: x\r\nX-A: 1\r\n"])
async def test_headers_that_do_not_come_end_the_connection(impatient: Served, begun: str) -> None:
    reader, _ = await impatient.send(begun)
    assert await answer(reader) == (408, "request_timeout")


async def test_endless_headers_end_the_connection(tmp_path: Path) -> None:
    async with Served(settings(tmp_path)) as served:
        begin = "GET /v1/version HTTP/1.1\r\nX: "
        reader, _ = await served.send(begin + "x" * (MAX_HEAD_BYTES + 1 - len(begin)))
        assert b" 431 " in await reader.readline()


async def test_headers_that_do_not_come_after_an_answer_end_the_connection(impatient: Served) -> None:
    reader, writer = await impatient.send("GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b" 200 " in await reader.readline()
    writer.write(b"GET /v1/version HT")
    assert (await reader.read()).endswith(b"}")  # the first answer's body, and then the end


@pytest.mark.parametrize("path", ["/v1/files?name=x", "/v1/jobs"])
async def test_a_body_that_stalls_ends_the_connection(impatient: Served, path: str) -> None:
    kind = "Content-Type: application/json\r\n"
    reader, _ = await impatient.send(
        f"POST {path} HTTP/1.1\r\nHost: x\r\n{AUTH}{kind}Content-Length: 1000\r\n\r\n" + '{"a": 1'
    )
    assert await answer(reader) == (408, "request_timeout")


async def test_a_body_that_drips_ends_the_connection(impatient: Served) -> None:
    reader, writer = await impatient.send(
        f"POST /v1/files?name=x HTTP/1.1\r\nHost: x\r\n{AUTH}Content-Length: 100000\r\n\r\n"
    )

    async def drip() -> None:
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.01)

    dripping = asyncio.create_task(drip())
    try:
        assert (await answer(reader))[0] == 408
    except ConnectionResetError:
        pass  # a drop came after the end
    finally:
        dripping.cancel()


async def test_a_refused_body_that_stalls_ends_the_connection(impatient: Served) -> None:
    reader, _ = await impatient.send("POST /v1/files?name=x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx")
    assert b" 401 " in await reader.readline()
    await reader.read()


async def test_an_answer_that_is_not_taken_ends_the_connection(tmp_path: Path) -> None:
    """Requests without end on one connection, of which no answer is read."""
    async with Served(settings(tmp_path, write_seconds=0.1, keep_alive_seconds=60.0)) as served:
        served.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, served.listener.getsockname())
        request = f"GET /v1/jobs/x HTTP/1.1\r\nHost: x\r\n{AUTH}\r\n".encode()
        with pytest.raises(ConnectionError):
            await ask_without_end(served, sock, request, 100)
        sock.close()


async def test_requests_that_are_sent_ahead_do_not_pile_up(tmp_path: Path) -> None:
    """Whoever sends few at a time gets all answers, as nothing is read while some wait; others are cut."""
    async with Served(settings(tmp_path)) as served:
        request = f"GET /v1/jobs/x HTTP/1.1\r\nHost: x\r\n{AUTH}\r\n"
        reader, writer = await served.send(request * MAX_PIPELINED)
        for _ in range(3):
            for _ in range(MAX_PIPELINED):
                assert b" 404 " in await reader.readuntil(b"\r\n\r\n")
                await reader.readuntil(b"}}")
            writer.write(request.encode() * MAX_PIPELINED)
        writer.close()
        reader, _ = await served.send(request * (MAX_PIPELINED + 2))
        assert await answer(reader) == (400, "malformed_request")


async def test_what_is_no_http_is_answered_with_the_envelope(tmp_path: Path) -> None:
    async with Served(settings(tmp_path)) as served:
        reader, _ = await served.send("\x16\x03\x01 hello\r\n\r\n")
        assert await answer(reader) == (400, "malformed_request")


async def test_a_connection_without_a_request_is_closed(tmp_path: Path) -> None:
    async with Served(settings(tmp_path, keep_alive_seconds=0.1)) as served:
        reader, _ = await served.send("GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in await reader.read()


async def test_a_client_that_is_quick_enough_is_left_alone(tmp_path: Path) -> None:
    """The body is looked at many times while it comes, and so is a stream that is quiet."""
    slow_but_right = {"header_seconds": 0.2, "body_seconds": 0.1, "min_bytes_per_second": 10.0, "write_seconds": 0.1}
    async with Served(settings(tmp_path, **slow_but_right)) as served:
        reader, writer = await served.send(
            f"POST /v1/files?name=x HTTP/1.1\r\nHost: x\r\n{AUTH}Content-Length: 50000\r\n\r\n"
        )
        for _ in range(50):
            writer.write(b"x" * 1000)
            await asyncio.sleep(0.01)
        assert b" 201 " in await reader.readline()


async def test_more_connections_than_allowed_are_answered(tmp_path: Path) -> None:
    async with Served(settings(tmp_path, max_connections=2)) as served:
        held = [await served.connect() for _ in range(2)]
        await until(lambda: len(served.server.server_state.connections) == 2)
        reader, _ = await served.connect()
        assert await answer(reader) == (503, "too_many_connections")
        for _, writer in held:
            writer.close()


async def test_stalled_uploads_of_one_key_do_not_keep_others_from_theirs(tmp_path: Path) -> None:
    async with Served(settings(tmp_path, max_uploads_per_key=3)) as served:
        begin = f"POST /v1/files?name=x HTTP/1.1\r\nHost: x\r\n{AUTH}Content-Length: 10\r\n\r\nx"
        stalled = [await served.send(begin) for _ in range(3)]
        service = served.server.config.loaded_app.app.state.services
        await until(lambda: service.uploads._taken.total() == 3)
        reader, _ = await served.send(begin)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert b" 429 " in head
        assert b"retry-after: 1" in head
        for _, writer in stalled:
            writer.write(b"x" * 9)
        assert [b" 201 " in await reader.readline() for reader, _ in stalled] == [True] * 3
        reader, _ = await served.send(begin + "x" * 9)
        assert b" 201 " in await reader.readline()


async def test_answers_are_sent_without_delay(tmp_path: Path) -> None:
    async with Served(settings(tmp_path)) as served:
        _, writer = await served.connect()
        await until(lambda: served.server.server_state.connections)
        [connection] = served.server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert served.listener.proto == socket.IPPROTO_TCP
        writer.close()
