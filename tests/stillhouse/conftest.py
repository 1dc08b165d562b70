"""A real service on a real port, in a thread: its answers can be broken on purpose, and jobs be moved on by hand."""

from __future__ import annotations

import asyncio
import faulthandler
import hashlib
import shutil
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pytest
import uvicorn
from safetensors.numpy import save_file
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.clock import now
from app.core.ids import new_id
from app.core.services import Services
from app.core.settings import Settings
from app.jobs import leases, publishing, reporting
from app.jobs.leases import Lease, StoredFile
from app.main import create_app
from app.projects.keys import new_key
from app.projects.schemas import KeyRequest
from app.projects.service import create_key
from app.projects.tables import Project
from stillhouse import Client
from tests.app.jobs.builders import CONFIG

Result = TypeVar("Result")
PATIENCE = 600.0
"""Seconds for the service to start, and to stop."""
Fault = Callable[[ASGIApp, Scope, Receive, Send], Awaitable[None]]


class Step(NamedTuple):
    """Progress as a worker reports it."""

    step: int
    total_steps: int
    epoch: float = 1.0
    samples_per_second: float = 1000.0
    seconds_left: float | None = 3.0


@dataclass
class Faulty:
    """Passes requests on, except that the planned faults come first, one a request to a matching path."""

    app: ASGIApp
    plan: deque[tuple[str, Fault]] = field(default_factory=deque)
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.seen.append((scope["method"], scope["path"], headers))
        if self.plan and self.plan[0][0] in scope["path"]:
            return await self.plan.popleft()[1](self.app, scope, receive, send)
        await self.app(scope, receive, send)

    def next(self, path: str, fault: Fault, times: int = 1) -> None:
        self.plan.extend([(path, fault)] * times)


def answer(status: int, **headers: str) -> Fault:
    """Instead of the service's own: this status."""

    async def fault(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        names = [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": names})
        await send({"type": "http.response.body", "body": b""})

    return fault


def cut_off(after_bytes: int) -> Fault:
    """Do what is asked, but break the connection after so many bytes of the body; -1: before its first."""

    async def fault(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        left = after_bytes

        async def cut(message: Message) -> None:
            nonlocal left
            if after_bytes < 0 and message["type"] == "http.response.start":
                await send({**message, "headers": [(b"content-length", b"9")]})
            elif after_bytes < 0:
                return
            elif message["type"] == "http.response.body":
                body = message.get("body", b"")
                await send({**message, "body": body[:left], "more_body": True})
                left -= len(body)
                if left <= 0:
                    raise ConnectionResetError("cut off on purpose")
            else:
                await send(message)

        await app(scope, receive, cut)
        raise ConnectionResetError("cut off on purpose")

    return fault


def spoil(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
    """Flip the first byte of the body."""

    async def spoiled(message: Message) -> None:
        body = message.get("body", b"")
        await send({**message, "body": bytes([body[0] ^ 1]) + body[1:]} if body else message)

    return app(scope, receive, spoiled)


def tell(event: threading.Event) -> Fault:
    """Do what is asked, and let the test know."""

    async def fault(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        event.set()
        await app(scope, receive, send)

    return fault


def ignore_range(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
    """Answer with the whole, as a store does that knows no ranges."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
    return app({**scope, "headers": headers}, receive, send)


@dataclass
class LiveService:
    """The service under test."""

    url: str
    key: str
    settings: Settings
    faults: Faulty
    loop: asyncio.AbstractEventLoop
    services: Services

    def call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run something on the service's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def write(self, work: Callable[[AsyncSession], Awaitable[Result]]) -> Result:
        """Run something in a transaction."""

        async def run() -> Result:
            async with self.services.database.write() as session:
                return await work(session)

        return self.call(run())

    def start(self, job_id: str) -> Lease:
        """As a worker: claim a job and start it."""
        lease = self.write(
            lambda session: leases.claim(
                session, owner="test", queues=["any", "cpu"], lease_seconds=60.0, job_id=job_id
            )
        )
        assert lease is not None
        self.write(lambda session: leases.start(session, lease))
        return lease

    def report(self, lease: Lease, step: int, total: int = 10, loss: float = 0.5) -> None:
        """As a worker: tell progress and a loss."""
        self.write(lambda session: reporting.record(session, lease, Step(step, total), [("train/loss", step, loss)]))

    def succeed(self, lease: Lease, files: dict[str, bytes]) -> str:
        """As a worker: publish files and end the job."""

        async def store(name: str, content: bytes) -> StoredFile:
            key = f"jobs/{lease.job_id}/{lease.attempt}/{name}"
            written = await self.services.store.write(key, _chunks(content), 1 << 30)
            return StoredFile(name, key, written.size, written.sha256)

        stored = [self.call(store(name, content)) for name, content in files.items()]
        return self.write(
            lambda session: publishing.succeed(session, lease, stored, CONFIG, 650, {"student": {"accuracy": 0.5}})
        )

    def fail(self, lease: Lease, message: str) -> None:
        self.write(lambda session: leases.fail(session, lease, fault="user", code="nan_loss", message=message, step=3))


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content


@contextmanager
def live(data_dir: Path, template: Path) -> Iterator[LiveService]:
    """Run the service on a free port until the block ends, on a copy of a migrated database."""
    data_dir.mkdir()
    shutil.copy(template, data_dir / "stillhouse.db")
    settings = Settings(data_dir=data_dir, port=0, bootstrap_key=new_key())  # type: ignore[arg-type]  # is parsed
    assert settings.bootstrap_key is not None
    app = create_app(settings)
    faults = Faulty(app)
    server = uvicorn.Server(
        uvicorn.Config(faults, port=0, log_level="critical", lifespan="on", timeout_graceful_shutdown=1)
    )
    loop = asyncio.new_event_loop()
    started = threading.Event()
    thread = threading.Thread(target=_serve, args=(server, loop, started))
    thread.start()
    try:
        assert started.wait(PATIENCE)
        port = server.servers[0].sockets[0].getsockname()[1]
        key = settings.bootstrap_key.get_secret_value()
        yield LiveService(f"http://127.0.0.1:{port}", key, settings, faults, loop, app.state.services)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        if thread.is_alive():
            faulthandler.dump_traceback()
            tasks = "\n".join(map(str, asyncio.all_tasks(loop)))
            pytest.fail(f"the service has not stopped after {PATIENCE} s; its tasks:\n{tasks}")
        loop.close()


def _serve(server: uvicorn.Server, loop: asyncio.AbstractEventLoop, started: threading.Event) -> None:
    startup = server.startup

    async def announce(sockets: list[socket.socket] | None = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = announce  # type: ignore[method-assign]  # uvicorn tells in no other way
    asyncio.set_event_loop(loop)
    loop.run_until_complete(server.serve())


@pytest.fixture(scope="session")
def shared_service(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[LiveService]:
    with live(tmp_path_factory.mktemp("service") / "data", sqlite_template) as running:
        yield running


@pytest.fixture
def service(shared_service: LiveService) -> LiveService:
    """The session's service, seen through a key of a project of this test alone."""
    shared_service.faults.plan.clear()
    shared_service.faults.seen.clear()
    return replace(shared_service, key=shared_service.write(_new_project_key(shared_service.settings.secret_bytes)))


def _new_project_key(secret: bytes) -> Callable[[AsyncSession], Awaitable[str]]:
    async def make(session: AsyncSession) -> str:
        project = Project(id=new_id("proj"), name=new_id("proj"), created_at=now())
        session.add(project)
        await session.flush()
        key = new_key()
        wanted = KeyRequest(name="first", scopes=["read", "write", "admin"])
        await create_key(session, project.id, wanted, key, secret)
        return key

    return make


@pytest.fixture
def client(service: LiveService) -> Iterator[Client]:
    with Client(service.url, service.key) as client:
        yield client


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    """A tiny set of images: 40 of 8 x 8 pixels, 10 classes."""
    path = tmp_path / "digits.npz"
    random = np.random.default_rng(0)
    np.savez(path, x=random.integers(0, 256, (40, 8, 8), dtype=np.uint8), y=np.arange(40) % 10)
    return path


def job_document(train: str, **fields: Any) -> dict[str, Any]:
    """A small supervised job."""
    document = {
        "data": {"train": train},
        "student": {"architecture": "mlp", "hidden": [4]},
        "recipe": {"losses": [{"kind": "cross-entropy"}], "epochs": 2},
    }
    return {**document, **fields}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Weights of a small multi-layer perceptron, and their description."""
    shapes = {"1.weight": (4, 64), "1.bias": (4,), "3.weight": (10, 4), "3.bias": (10,)}
    path = tmp_path / "model.safetensors"
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, path)
    config = {
        "architecture": {"architecture": "mlp", "hidden": [4]},
        "input": {"channels": 1, "height": 8, "width": 8},
        "preprocessing": {"scale": 1.0, "mean": [0.5], "std": [0.25]},
        "classes": 10,
    }
    return path, config
