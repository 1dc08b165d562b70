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
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from tests.servers import S3, PostgreSQL, Valkey, postgresql, valkey
from tests.servers.output import all_of, first_line

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


def test_postgresql_never_runs_as_root(postgres_server: PostgreSQL) -> None:
    process = (postgres_server.folder / "data" / "postmaster.pid").read_text().split()[0]
    assert psutil.Process(int(process)).uids().effective != 0


def test_a_server_comes_back_at_its_address_with_its_data() -> None:
    with postgresql() as server, server.database() as url:
        run_sql(url, "create table kept (n int)")
        server.stop()
        with pytest.raises(OperationalError):
            run_sql(url, "select 1")
        server.start()
        assert run_sql(url, "select count(*) from kept") == 0


def test_valkey_wakes_a_waiting_consumer(redis_url: str) -> None:
    woken: list[list[bytes]] = []
    with redis.Redis.from_url(redis_url) as producer, redis.Redis.from_url(redis_url) as consumer:
        assert producer.ping()
        waiter = threading.Thread(target=lambda: woken.append(list(consumer.brpop(["test-queue"], timeout=30))))
        waiter.start()
        producer.lpush("test-queue", "job_1")
        waiter.join(30)
    assert woken == [[b"test-queue", b"job_1"]]


def test_valkey_never_evicts(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


@pytest.fixture(params=["s3_moto", "s3_rclone"])
def s3(request: pytest.FixtureRequest) -> S3:
    server = request.getfixturevalue(request.param)
    assert isinstance(server, S3)
    return server


def test_s3_gives_back_what_was_put(s3: S3) -> None:
    store = S3Store(**s3.client_options())
    store.put("round-trip/data", DATA, use_multipart=True, chunk_size=5 << 20)
    assert bytes(store.get("round-trip/data").bytes()) == DATA
    assert store.head("round-trip/data")["size"] == len(DATA)
    store.delete("round-trip/data")
    with pytest.raises(FileNotFoundError):
        store.get("round-trip/data")


def test_moto_joins_the_parts_of_an_upload(s3_moto: S3) -> None:
    store = S3Store(**s3_moto.client_options())
    data = bytes(range(256)) * (6 << 12)
    store.put("parts/data", data, use_multipart=True, chunk_size=5 << 20)
    assert bytes(store.get("parts/data").bytes()) == data


def test_moto_serves_ranges(s3_moto: S3) -> None:
    store = S3Store(**s3_moto.client_options())
    store.put("ranges/data", DATA)
    assert bytes(store.get_range("ranges/data", start=100, end=400)) == DATA[100:400]


def test_moto_refuses_to_overwrite_on_a_conditional_put(s3_moto: S3) -> None:
    store = S3Store(**s3_moto.client_options())
    store.put("conditional/data", b"first", mode="create")
    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        store.put("conditional/data", b"second", mode="create")
    assert bytes(store.get("conditional/data").bytes()) == b"first"


def test_rclone_accepts_a_presigned_link_and_rejects_a_forged_one(s3_rclone: S3) -> None:
    store = S3Store(**s3_rclone.client_options())
    store.put("presigned/data", DATA)
    link = obstore.sign(store, "GET", "presigned/data", timedelta(minutes=1))
    answer = httpx.get(link)
    assert (answer.status_code, answer.content) == (200, DATA)
    forged = link.replace("X-Amz-Expires=60", "X-Amz-Expires=3600")
    assert forged != link
    assert httpx.get(forged).status_code == 403


def test_rclone_rejects_a_client_with_a_wrong_secret(s3_rclone: S3) -> None:
    stranger = S3Store(**s3_rclone.client_options() | {"secret_access_key": "not-the-secret"})
    with pytest.raises(obstore.exceptions.PermissionDeniedError):
        stranger.put("forged/data", b"x")


def test_a_server_stops_with_its_context() -> None:
    with valkey() as server:
        url, folder = server.url(), server.folder
    assert not folder.exists()
    assert not answers(url)


def test_a_server_goes_with_a_killed_owner() -> None:
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
    url, folder = first_line(owner.stdout).split()
    family = psutil.Process(owner.pid).children(recursive=True)
    assert {child.name() for child in family} >= {"valkey-server"}
    assert answers(url)
    os.kill(owner.pid, signal.SIGKILL)
    all_of(owner)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    assert not Path(folder).exists()


def test_a_server_that_can_not_start_says_why(tmp_path: Path) -> None:
    class Misspelt(Valkey):
        def command(self) -> list[str]:
            return [*super().command(), "--no-such-option", "1"]

    with pytest.raises(RuntimeError, match="no-such-option"):
        Misspelt(tmp_path, 0).start()


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
        with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0)) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False
