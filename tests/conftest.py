"""The session's servers. Each starts when a test first asks for it, and stops with the session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core import migrate
from tests.servers import S3, PostgreSQL, moto_s3, postgresql, rclone_s3, valkey

if "PYTEST_XDIST_WORKER" in os.environ:  # of several on the same cores, where torch's threads spin while they wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgreSQL]:
    """A PostgreSQL cluster; `with postgres_server.database() as url` gives a fresh database."""
    with postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite database without rows, to be copied."""
    path = tmp_path_factory.mktemp("template") / "migrated.db"
    migrate.upgrade(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgreSQL) -> str:
    """Name of a migrated PostgreSQL database without rows, to be copied."""
    return postgres_server.template("migrated", migrate.upgrade)


@pytest.fixture
def postgres_url(postgres_server: PostgreSQL) -> Iterator[str]:
    """SQLAlchemy URL of an empty database of this test alone."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Address of a Redis-compatible server that the session shares: use names of your own in it."""
    with valkey() as server:
        yield server.url()


@pytest.fixture(scope="session")
def s3_moto() -> Iterator[S3]:
    """An S3 store that behaves like S3 but accepts any signature; shared: use a prefix of your own."""
    with moto_s3() as server:
        yield server


@pytest.fixture(scope="session")
def s3_rclone() -> Iterator[S3]:
    """An S3 store that verifies signatures and their expiry but ignores ranges; shared: use a prefix of your own."""
    with rclone_s3() as server:
        yield server


MOST_OF_AN_ID = 40
"""Characters of a parameter in a test's id."""


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """The `kind` or `architecture` of an option; short printable text as it is; anything else by its argument's name.

    None leaves the id to pytest, which also numbers ids that are not unique.
    """
    name = getattr(val, "kind", None) or getattr(val, "architecture", None)
    if isinstance(name, str):
        return name
    if isinstance(val, bytes):
        return argname
    if isinstance(val, str) and not (len(val) <= MOST_OF_AN_ID and val.isascii() and val.isprintable()):
        return argname
    return None
