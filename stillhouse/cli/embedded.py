"""The whole service on this machine: the API in this process, and one worker as its child."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import resource
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import uvicorn
from sqlalchemy.exc import SQLAlchemyError

from app.core import logs, migrate
from app.core.connection import connection_class
from app.core.settings import Settings
from app.main import create_app
from stillhouse import ClientError, connection
from stillhouse.cli import schema
from stillhouse.connection import Connection

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger("stillhouse.up")
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
HEALTHY_SECONDS = 10.0
"""Lifetime after which a worker that dies is restarted at once; before that, after a pause that doubles."""
FIRST_KEY_FILE = "key"
BACKLOG = 2048
SHUTDOWN_SECONDS = 5
"""Time for open requests when the service stops."""


class CannotStart(ClientError):
    """The service can't start with this configuration of the machine."""

    code = "cannot_start"


def up(settings: Settings, announce: Callable[[Connection], None]) -> int:
    """Run API and worker until SIGINT or SIGTERM; `announce` is called once requests are served.

    The worker is stopped first, so that it can return its job to the queue; a second signal kills it.
    """
    logs.configure(settings.log_format, settings.log_level)
    migrate.upgrade(settings.resolved_database_url)
    with listen(settings) as listener:
        config = _config(create_app(settings), settings)
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            return runner.run(_run(settings, config, listener, announce))


def serve(settings: Settings, announce: Callable[[str], None]) -> int:
    """Run only the API, until SIGINT or SIGTERM; `announce` is called with its address."""
    logs.configure(settings.log_format, settings.log_level)
    config = _config(create_app(settings), settings)
    _require_schema(settings)
    with listen(settings) as listener:
        announce(address(*listener.getsockname()[:2]))
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def _require_schema(settings: Settings) -> None:
    try:
        found = schema.read(settings.resolved_database_url)
    except SQLAlchemyError as error:
        raise CannotStart(f"the database can't be reached: {str(error).splitlines()[0]}") from None
    if found.is_old:
        raise CannotStart(f"the database is at revision {found.current}, not {found.newest}: run `stillhouse migrate`")


def listen(settings: Settings) -> socket.socket:
    """Open the port of the settings. Raises `CannotStart`."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # The protocol is set, since asyncio disables Nagle's delay only for sockets with the protocol TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)  # clients that connect before the server has started wait
    except OSError as error:
        listener.close()
        raise CannotStart(f"can't listen on {settings.host} port {settings.port}: {error.strerror}") from None
    return listener


def address(host: str, port: int) -> str:
    """URL by which clients on this machine reach a listener."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{reachable}:{port}"


def _own_key(settings: Settings) -> str | None:
    """The key for this machine's clients: the configured one, or the first one, which the API stores in its folder."""
    if settings.bootstrap_key is not None:
        return settings.bootstrap_key.get_secret_value()
    path = settings.data_dir.expanduser() / FIRST_KEY_FILE
    return path.read_text().strip() if path.is_file() else None


async def _run(
    settings: Settings, config: uvicorn.Config, listener: socket.socket, announce: Callable[[Connection], None]
) -> int:
    server = _Server(config)
    signals = _signals()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    starting = asyncio.create_task(server.ready.wait())
    try:
        await asyncio.wait({serving, starting}, return_when=asyncio.FIRST_COMPLETED)
        if not server.ready.is_set():
            await serving
            raise CannotStart("the API did not start; its log has the reason")
        mine = Connection(url=address(*listener.getsockname()[:2]), key=_own_key(settings) or "")
        if mine.key:
            connection.write(settings.data_dir, mine)
        worker = _Worker(await _start_worker())
        supervision = asyncio.create_task(worker.supervise())
        announce(mine)
        stopping = asyncio.create_task(signals.wait())
        await asyncio.wait({serving, supervision, stopping}, return_when=asyncio.FIRST_COMPLETED)
        signals.clear()
        await worker.stop(again=signals)
        supervision.cancel()
    finally:
        starting.cancel()
        server.should_exit = True
        await serving
    return 0


def _signals() -> asyncio.Event:
    """An event that is set by SIGINT or SIGTERM."""
    arrived = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, arrived.set)
    return arrived


class _Server(uvicorn.Server):
    """A server that reports when it is ready, and does not handle signals."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    _freeze_garbage_collector()
    _allow_open_files()
    return uvicorn.Config(
        app,
        http=connection_class(settings),
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=math.ceil(settings.keep_alive_seconds),
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


def _allow_open_files() -> None:
    """Raise the limit of open files to the maximum: every connection is one, and shells often set a low limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS reports an unlimited maximum that it does not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _freeze_garbage_collector() -> None:
    """Exclude the objects loaded so far from garbage collection, which would take a quarter of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


class _Worker:
    """The child process that runs jobs; restarted when it dies."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._stopping = False

    async def supervise(self) -> None:
        """Restart the worker whenever it ends; return once it has been stopped."""
        pause = 0.0
        clock = asyncio.get_running_loop().time
        while True:
            begin = clock()
            code = await self._process.wait()
            if self._stopping:
                return
            short = clock() - begin < HEALTHY_SECONDS
            pause = min(max(pause * 2, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS) if short else 0.0
            log.error("the worker ended with code %s; it is restarted in %.0f s", code, pause)
            await asyncio.sleep(pause)
            self._process = await _start_worker()

    async def stop(self, again: asyncio.Event) -> None:
        """Let the worker save its job and exit; a signal meanwhile kills it."""
        self._stopping = True
        if self._process.returncode is not None:
            return
        self._process.terminate()
        gone, impatient = asyncio.create_task(self._process.wait()), asyncio.create_task(again.wait())
        await asyncio.wait({gone, impatient}, return_when=asyncio.FIRST_COMPLETED)
        impatient.cancel()
        if not gone.done():
            self._process.kill()
            await gone


async def _start_worker() -> Process:
    # A separate session: Ctrl-C in the terminal reaches only this process, which then stops the worker in order.
    command = (sys.executable, "-m", "worker", "--parent", str(os.getpid()))
    return await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
    )
