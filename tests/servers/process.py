"""A server process under its guard: a reserved port, a log, a start that ends when the server answers, a sure stop."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Self

import psutil

from tests.servers.ports import reserved_port

START_SECONDS = 300.0
"""Longest wait for a server's first answer, on a machine with other work."""


class Server(ABC):
    """One server in its own folder; `start` after `stop` continues on the same port with the same data."""

    stop_signal: ClassVar[str] = "SIGTERM"
    user: str = ""
    """Account to run as; empty: the caller's."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self._guard: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Program and arguments that serve on `self.port` in the foreground."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether a client is served; any OSError counts as no."""

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Self]:
        """A started server in a temporary folder, both gone afterwards."""
        # Short prefix under /tmp: a path of a unix socket holds 107 bytes.
        temporary = tempfile.TemporaryDirectory(prefix="stillhouse-", ignore_cleanup_errors=True)
        with temporary as folder, reserved_port() as port:
            server = cls(Path(folder), port)
            server.start()
            try:
                yield server
            finally:
                server.stop()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start and wait until the server answers.

        Raises: RuntimeError with the end of the log when it exits or stays silent.
        """
        self._guard = self._spawn()
        deadline = time.monotonic() + START_SECONDS
        while self._guard.poll() is None and time.monotonic() < deadline:
            if self._is_ready():
                return
            time.sleep(0.02)
        self.stop()
        raise RuntimeError(f"{type(self).__name__} did not start:\n{self.log[-4000:]}")

    @property
    def process(self) -> psutil.Process:
        """The server itself, without its guard."""
        if self._guard is None:
            raise RuntimeError(f"{type(self).__name__} is stopped")
        return psutil.Process(self._guard.pid).children()[0]

    def _spawn(self) -> subprocess.Popen[bytes]:
        guard = [sys.executable, "-S", str(Path(__file__).with_name("guard.py"))]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [*guard, str(self.folder), self.stop_signal, self.user, *self.command()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self.environment(),
                start_new_session=True,
            )

    def environment(self) -> dict[str, str]:
        """All variables that the server gets."""
        return dict(os.environ)

    def _is_ready(self) -> bool:
        try:
            return self.answers()
        except OSError:
            return False

    def stop(self) -> None:
        """Stop the server and wait until it is gone; harmless when it is gone already."""
        if self._guard is None:
            return
        try:
            self._guard.communicate(b"stop")
        finally:
            self._guard = None
