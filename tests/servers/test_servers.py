"""Each server does the job for which the tests use it, and none outlives its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import httpx
import obstore
import psutil
import psycopg
import pytest
import redis
from obstore.store import S3Store
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from tests.servers import S3, PostgreSQL, Valkey, postgresql, valkey

DATA = bytes(range(256)) * 5000
ROOT = Path(__file__).parents[2]


async def test_postgresql_serves_sync_and_async_sessions(postgres_url: str) -> None:
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(text("create table jobs (id text primary key)"))
        connection.execute(text("insert into jobs values ('job_1')"))
    engine.dispose()
    async_engine = create_async_engine(postgres_url)
    async with async_engine.connect() as connection:
        assert (await connection.execute(text("select id from jobs for update skip locked"))).scalars().all() == [
            "job_1"
        ]
    await async_engine.dispose()


def test_postgresql_gives_each_test_its_own_copy_of_a_template(postgres_server: PostgreSQL) -> None:
    def prepare(url: str) -> None:
        run_sql(url, "create table counted (n int)")

    template = postgres_server.template("counted_template", prepare)
    with postgres_server.database(template) as first, postgres_server.database(template) as second:
        run_sql(first, "insert into counted values (1)")
        assert run_sql(first, "select count(*) from counted") == 1
        assert run_sql(second, "select count(*) from counted") == 0
    with pytest.raises(OperationalError, match="does not exist"):
        run_sql(first, "select 1")


def test_postgresql_drops_a_database_that_is_still_connected(postgres_server: PostgreSQL) -> None:
    with postgres_server.database() as url:
        connection = psycopg.connect(url.replace("+psycopg", ""))
    with pytest.raises(psycopg.OperationalError):
        connection.execute("select 1")


def test_postgresql_never_runs_as_root(postgres_url: str) -> None:
    program = """
import sys
from tests.servers import valkey
with valkey() as server:
    print(server.url(), server.folder, flush=True)
    sys.stdin.read()
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    url, folder = owner.stdout.readline().split()
    family = psutil.Process(owner.pid).children(recursive=True)
    assert {child.name() for child in family} >= {"valkey-server"}
    assert answers(url)
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    assert not Path(folder).exists()


def test_a_server_that_can_not_start_says_why(tmp_path: Path) -> None:
    class Misspelt(Valkey):
        def command(self) -> list[str]:
            return [*super().command(), "--no-such-option", "1"]

    with pytest.raises(RuntimeError, match="no-such-option"):
        Misspelt(tmp_path).start()


def run_sql(url: str, statement: str) -> object:
    """The first value of the first row, or None for a statement without rows."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            result = connection.execute(text(statement))
            return result.scalar() if result.returns_rows else None
    finally:
        engine.dispose()


def answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False
