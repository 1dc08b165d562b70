"""Transactions: what a frozen or slow process may hold up, and how transactions of SQLite share a commit."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import delete, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.core.database import DATABASE_LOST, Database, Limits
from app.core.outbox import OutboxMessage, post
from app.core.relay import relay
from app.core.settings import Settings
from app.files.service import expire_uploads
from app.jobs import service
from app.jobs.lifecycle import Status
from app.jobs.reaper import Reaper
from app.jobs.service import Idempotency
from app.projects import keys
from tests.app.conftest import Api, running
from tests.app.jobs.builders import PROJECT, add_inputs, job_spec, let_lease_run_out, load, must_claim, submit
from tests.app.jobs.builders import running as running_job

SHORT = Limits(lock=0.1)


@contextmanager
def frozen(url: str, *statements: str) -> Iterator[psycopg.Connection]:
    """A process that stopped inside a transaction, after these statements."""
    address = url.replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(address) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[arg-type]  # a plain string
        yield connection
        connection.rollback()


@asynccontextmanager
async def opened(url: str, limits: Limits = SHORT) -> AsyncIterator[Database]:
    database = Database(url, limits=limits)
    async with database.write() as session:
        await add_inputs(session, PROJECT)
    yield database
    await database.close()


@pytest.fixture
def postgresql_url(postgres_server, postgres_template) -> Iterator[str]:  # type: ignore[no-untyped-def]
    with postgres_server.database(postgres_template) as url:
        yield url


# ---- PostgreSQL: locks of others


async def test_the_reaper_passes_over_a_job_that_a_frozen_process_holds(postgresql_url: str) -> None:
    async with opened(postgresql_url) as database:
        held, lost = [(await running_job(database)).job_id for _ in range(2)]
        for job_id in (held, lost):
            await let_lease_run_out(database, job_id)
        with frozen(postgresql_url, f"select * from jobs where id = '{held}' for update"):
            assert await Reaper(database, "me", 5.0, 5.0).sweep()
            assert (await load(database, lost)).status == Status.QUEUED
            assert (await load(database, held)).status == Status.RUNNING


async def test_a_frozen_reaper_does_not_keep_another_waiting(postgresql_url: str) -> None:
    async with opened(postgresql_url) as database:
        reaper = Reaper(database, "me", 5.0, 5.0)
        assert await reaper.sweep()
        with frozen(postgresql_url, "select * from sweep_leases for update"):
            assert not await reaper.sweep()
        assert await reaper.sweep()


async def test_housekeeping_passes_over_rows_that_a_frozen_process_holds(postgresql_url: str) -> None:
    async with opened(postgresql_url) as database:
        async with database.write() as session:
            post(session, "kind", {"number": 1})
            post(session, "kind", {"number": 2})
        await service.create(database, PROJECT, job_spec(), Idempotency("key", "one", 0.0))
        holds = ("select * from outbox where id = 1 for update", "select * from idempotency_keys for update")
        sent: list[object] = []

        async def send(payload: dict[str, object]) -> None:
            sent.append(payload.get("number"))

        with frozen(postgresql_url, *holds, "select * from uploads for update"):
            await relay(database, {"kind": send})
            assert sent == [2]
            assert await Reaper(database, "me", 5.0, 5.0).sweep()
            assert await expire_uploads(database) == 0


async def test_a_job_that_a_frozen_process_holds_is_not_claimed_but_others_are(postgresql_url: str) -> None:
    async with opened(postgresql_url) as database:
        first, second = [await submit(database) for _ in range(2)]
        with frozen(postgresql_url, f"select * from jobs where id = '{first}' for update"):
            assert (await must_claim(database)).job_id == second


@pytest.fixture
async def busy(postgresql_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    settings = Settings(
        data_dir=tmp_path / "data",
        database_url=postgresql_url,
        bootstrap_key=keys.new_key(),
        database_lock_seconds=0.3,
        database_idle_seconds=3.0,
    )
    async with running(settings) as api:
        yield api


async def test_a_request_for_what_another_holds_is_answered_with_503(busy: Api, postgresql_url: str) -> None:
    async with busy.services.database.write() as session:
        await add_inputs(session, PROJECT)
        await session.execute(text("update files set project_id = :to"), {"to": busy.project_id})
    made = await service.create(
        busy.services.database, busy.project_id, job_spec(recipe={"losses": [{"kind": "cross-entropy"}]})
    )
    with frozen(postgresql_url, f"select * from jobs where id = '{made.id}' for update"):
        for verb in ("cancel", "pause"):
            answer = await busy.client.post(f"/v1/jobs/{made.id}/{verb}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_busy")
            assert answer.headers["Retry-After"] == "1"
    assert (await busy.client.post(f"/v1/jobs/{made.id}/cancel")).status_code == 200


async def test_a_key_whose_request_still_runs_is_answered_with_409_and_when_to_come_again(
    busy: Api, postgresql_url: str
) -> None:
    claim = (
        "insert into idempotency_keys (project_id, key, fingerprint, locked_until, expires_at)"
        f" values ('{busy.project_id}', 'mine', 'x', 0, 1e12)"
    )
    body = {
        "data": {"train": "file_none"},
        "student": {"architecture": "mlp"},
        "recipe": {"losses": [{"kind": "cross-entropy"}]},
    }
    with frozen(postgresql_url, claim):
        answer = await busy.client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "mine"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "idempotency_key_in_use")
        assert answer.headers["Retry-After"] == "1"
    answer = await busy.client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "mine"})
    assert answer.status_code == 422


async def test_a_transaction_that_stands_still_is_ended_and_its_request_answered_with_503(
    busy: Api, postgresql_url: str
) -> None:
    """As a frozen process that goes on finds it; its locks were free again meanwhile."""

    @busy.app.get("/stands-still")
    async def stand_still() -> None:
        async with busy.services.database.write() as session:
            await session.execute(text("lock table outbox"))
            with frozen(postgresql_url, "lock table outbox"):  # waits until the server has ended the transaction
                pass
            await session.execute(text("select 1"))

    answer = await busy.client.get("/stands-still")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")
    assert int(answer.headers["Retry-After"]) > 0


async def test_a_statement_that_takes_too_long_can_be_tried_again(postgresql_url: str) -> None:
    async with opened(postgresql_url, Limits(statement=0.1)) as database:
        with pytest.raises(DATABASE_LOST):
            async with database.read() as session:
                await session.execute(text("select pg_sleep(600)"))
        assert await database.now() > 0


# ---- SQLite: shared commits


@pytest.fixture
async def file(sqlite_url: str) -> AsyncIterator[Database]:
    database = Database(sqlite_url, limits=Limits(statement=30.0))
    yield database
    await database.close()


async def put(database: Database, kind: str, fails: bool = False) -> None:
    async with database.write() as session:
        post(session, kind, {})
        await session.flush()
        await asyncio.sleep(0)
        if fails:
            raise KeyError(kind)


async def kinds(database: Database) -> list[str]:
    async with database.read() as session:
        return list(await session.scalars(select(OutboxMessage.kind).order_by(OutboxMessage.id)))


async def test_transactions_run_in_the_order_in_which_they_came(file: Database) -> None:
    await asyncio.gather(*(put(file, f"{number:03}") for number in range(100)))
    assert await kinds(file) == [f"{number:03}" for number in range(100)]


async def test_transactions_that_wait_share_a_commit(file: Database, sqlite_url: str) -> None:
    watching = sqlite3.connect(sqlite_url.removeprefix("sqlite+aiosqlite:///"))
    seen: set[int] = set()

    async def watch() -> None:
        while True:
            seen.add(watching.execute("select count(*) from outbox").fetchone()[0])
            await asyncio.sleep(0)

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*(put(file, "x") for _ in range(32)))
    watcher.cancel()
    assert seen <= {0, 32}


async def test_one_that_fails_takes_no_other_with_it(file: Database) -> None:
    made = await asyncio.gather(*(put(file, f"{n}", fails=n % 3 == 1) for n in range(9)), return_exceptions=True)
    assert [type(outcome) for outcome in made] == [type(None), KeyError, type(None)] * 3
    assert await kinds(file) == ["0", "2", "3", "5", "6", "8"]


async def test_a_statement_that_fails_takes_no_other_with_it(file: Database) -> None:
    async def twice() -> None:
        async with file.write() as session:
            for _ in range(2):
                session.add(OutboxMessage(id=7, kind="twice", payload={}, available_at=0.0))
                await session.flush()
                session.expunge_all()

    made = await asyncio.gather(put(file, "a"), twice(), put(file, "b"), return_exceptions=True)
    assert [type(outcome) for outcome in made] == [type(None), IntegrityError, type(None)]
    assert await kinds(file) == ["a", "b"]


async def test_one_that_is_cancelled_takes_no_other_with_it(file: Database) -> None:
    async def wait_in_it() -> None:
        async with file.write() as session:
            post(session, "cancelled", {})
            await session.flush()
            await asyncio.Future()

    first = asyncio.create_task(put(file, "a"))
    cancelled = asyncio.create_task(wait_in_it())
    last = asyncio.create_task(put(file, "b"))
    await asyncio.sleep(0.05)
    cancelled.cancel()
    await asyncio.gather(first, last)
    assert await kinds(file) == ["a", "b"]


async def test_what_sqlite_rolls_back_by_itself_is_a_failure_of_all_that_share_it(file: Database) -> None:
    async def roll_back() -> None:
        async with file.write() as session:
            await session.execute(text("ROLLBACK"))  # as SQLite does on a full disk

    made = await asyncio.gather(put(file, "a"), roll_back(), put(file, "b"), return_exceptions=True)
    assert isinstance(made[0], DATABASE_LOST)
    assert isinstance(made[1], DATABASE_LOST)
    assert made[2] is None
    assert await kinds(file) == ["b"]


async def test_another_process_that_writes_is_waited_for(file: Database, sqlite_url: str) -> None:
    await put(file, "first")
    other = sqlite3.connect(
        sqlite_url.removeprefix("sqlite+aiosqlite:///"), isolation_level=None, check_same_thread=False
    )
    other.execute("begin immediate")
    waiting = [asyncio.create_task(put(file, kind)) for kind in "ab"]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in waiting)
    threading.Timer(0.05, other.execute, ["commit"]).start()
    await asyncio.gather(*waiting)
    assert await kinds(file) == ["first", "a", "b"]


async def test_a_turn_that_does_not_come_is_given_up(sqlite_url: str) -> None:
    database = Database(sqlite_url, limits=Limits(statement=0.05))
    async with database.write() as session:
        await session.execute(delete(OutboxMessage))
        with pytest.raises(PoolTimeout):
            await put(database, "late")
    assert await kinds(database) == []
    async with database.read() as session:
        assert await session.scalar(select(func.count()).select_from(OutboxMessage)) == 0
    await database.close()
