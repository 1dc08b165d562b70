"""The measured servers and the references, each in a separate process."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, TypeVar

import httpx
import psutil

from app.core import migrate
from app.core.settings import Settings
from app.projects import keys
from stillhouse import Client
from tests.servers.ports import reserved_port
from tests.servers.process import Server

ROOT = Path(__file__).parent.parent
QUIET = ("--log-level", "warning", "--no-access-log")
"""Settings of uvicorn in the service, which the references use, too."""
AnyServer = TypeVar("AnyServer", bound=Server)
Found = TypeVar("Found")
LOOK_SECONDS = 0.01
PATIENCE_SECONDS = 600.0


@contextmanager
def started(make: Callable[[Path, int], AnyServer]) -> Iterator[AnyServer]:
    """A running server in a temporary folder; both are removed afterwards. `make` gets the folder and a port."""
    temporary = tempfile.TemporaryDirectory(prefix="stillhouse-bench-", ignore_cleanup_errors=True)
    with temporary as folder, reserved_port() as port:
        server = make(Path(folder), port)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time of the process so far, without its children's."""
    times = process.cpu_times()
    return float(times.user + times.system)


def cpu_share(process: psutil.Process, seconds: float) -> float:
    """Share of a core that the process uses over the next seconds."""
    begin, before = time.monotonic(), cpu_seconds(process)
    time.sleep(seconds)
    return (cpu_seconds(process) - before) / (time.monotonic() - begin)


def await_rest(process: psutil.Process) -> psutil.Process:
    """Wait until the process has finished loading and is idle."""
    return await_that(lambda: process if cpu_seconds(process) > 0.3 and cpu_share(process, 0.3) < 0.1 else None)


def await_that(look: Callable[[], Found | None]) -> Found:
    """Poll `look` until it finds something, and return it. Raises `TimeoutError`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := look()) is None:
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for did not come")
        time.sleep(LOOK_SECONDS)
    return found


class HttpServer(Server):
    """A server of HTTP on the loopback interface."""

    probe: ClassVar[str] = "/"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answers(self) -> bool:
        try:
            return httpx.get(self.url + self.probe).is_success
        except httpx.TransportError:
            return False

    def process(self) -> psutil.Process:
        """The server's process."""
        assert self._guard is not None
        [process] = psutil.Process(self._guard.pid).children()
        return process


class Service(HttpServer):
    """`stillhouse serve`: the API alone, on SQLite or on the database that `database_url` names."""

    probe = "/healthz"
    verb: ClassVar[str] = "serve"

    def __init__(self, folder: Path, port: int, database_url: str = "") -> None:
        super().__init__(folder, port)
        self.key = keys.new_key()
        self.settings = Settings(data_dir=folder / "service", database_url=database_url)

    def command(self) -> list[str]:
        return [str(Path(sys.executable).with_name("stillhouse")), self.verb, "--port", str(self.port)]

    def environment(self) -> dict[str, str]:
        return {
            "STILLHOUSE_DATA_DIR": str(self.settings.data_dir),
            "STILLHOUSE_DATABASE_URL": self.settings.resolved_database_url,
            "STILLHOUSE_BOOTSTRAP_KEY": self.key,
        }

    def start(self) -> None:
        """Migrate the database to the newest schema, then start."""
        migrate.upgrade(self.settings.resolved_database_url)
        super().start()

    def client(self) -> Client:
        """A client whose key has all scopes."""
        return Client(self.url, self.key)


class Embedded(Service):
    """`stillhouse up`: the API and one worker."""

    verb = "up"

    def worker(self) -> psutil.Process:
        """The supervisor's process."""
        [worker] = self.process().children()
        return worker


class Bare(HttpServer):
    """A FastAPI application with one route that does nothing."""

    def command(self) -> list[str]:
        return _uvicorn("bare", self.port)


class StaticFiles(HttpServer):
    """Starlette's static files under uvicorn, which serve `content`."""

    probe = "/probe"

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(folder, port)
        self.content = _content(folder)

    def command(self) -> list[str]:
        return _uvicorn("static", self.port)

    def environment(self) -> dict[str, str]:
        return {"BENCH_CONTENT": str(self.content)}


class StandardLibrary(StaticFiles):
    """Python's `http.server`, which serves `content`."""

    def command(self) -> list[str]:
        return [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "-d", str(self.content), str(self.port)]


def _content(folder: Path) -> Path:
    content = folder / "content"
    content.mkdir()
    (content / "probe").write_text("here")
    return content


def _uvicorn(factory: str, port: int) -> list[str]:
    application = ("--factory", f"bench.references:{factory}", "--app-dir", str(ROOT))
    return [sys.executable, "-m", "uvicorn", *application, "--port", str(port), *QUIET]
