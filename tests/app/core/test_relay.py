"""The outbox is sent message by message: one that fails waits alone, and is set aside in the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from sqlalchemy import select, update

import app.main  # noqa: F401  # whoever handles messages is imported
from app.core import relay as relay_module
from app.core.clock import now
from app.core.database import Database
from app.core.discard import DELETE_OBJECTS
from app.core.outbox import HANDLERS, OutboxMessage, handles, post
from app.core.relay import MAX_ATTEMPTS, Send, relay
from app.jobs.wake_up import DISPATCH
from tests.app.conftest import Api


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


class Mailbox:
    """Handlers of two kinds: `letter` is delivered, `bomb` never can be."""

    def __init__(self) -> None:
        self.delivered: list[int] = []
        self.handlers: Mapping[str, Send] = {"letter": self.deliver, "bomb": self.fail}

    async def deliver(self, payload: dict[str, Any]) -> None:
        self.delivered.append(payload["number"])

    async def fail(self, payload: dict[str, Any]) -> None:
        raise ConnectionError("nobody is at home")


async def put(database: Database, *kinds: str) -> None:
    async with database.write() as session:
        for number, kind in enumerate(kinds):
            post(session, kind, {"number": number})


async def left(database: Database) -> list[OutboxMessage]:
    async with database.read() as session:
        return list(await session.scalars(select(OutboxMessage).order_by(OutboxMessage.id)))


async def let_pauses_pass(database: Database) -> None:
    async with database.write() as session:
        await session.execute(update(OutboxMessage).values(available_at=now() - 1.0))


async def test_what_was_committed_is_sent_once(database: Database) -> None:
    await put(database, "letter", "letter", "letter")
    mailbox = Mailbox()
    sent = await asyncio.gather(*(relay(database, mailbox.handlers) for _ in range(3)))
    assert (sum(sent), sorted(mailbox.delivered), await left(database)) == (3, [0, 1, 2], [])


async def test_one_that_fails_holds_up_no_other(database: Database) -> None:
    await put(database, "bomb", "letter", "bomb", "letter")
    mailbox = Mailbox()
    assert await relay(database, mailbox.handlers) == 2
    assert sorted(mailbox.delivered) == [1, 3]
    bombs = await left(database)
    assert [(bomb.kind, bomb.attempts, bomb.last_error) for bomb in bombs] == [
        ("bomb", 1, "ConnectionError: nobody is at home")
    ] * 2
    await put(database, "letter")
    assert await relay(database, mailbox.handlers) == 1, "what failed waits"


async def test_one_that_takes_too_long_is_a_failure_of_its_own(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "SEND_SECONDS", 0.05)
    mailbox = Mailbox()

    async def hang(payload: dict[str, Any]) -> None:
        await asyncio.Event().wait()

    await put(database, "hang", "letter")
    assert await relay(database, {**mailbox.handlers, "hang": hang}) == 1
    [stuck] = await left(database)
    assert (stuck.kind, stuck.attempts) == ("hang", 1)
    assert "TimeoutError" in (stuck.last_error or "")


async def test_pauses_double_up_to_the_longest_and_then_it_is_set_aside(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await put(database, "bomb")
    mailbox, pauses = Mailbox(), []
    for _ in range(MAX_ATTEMPTS - 1):
        before = await database.now()
        await relay(database, mailbox.handlers)
        [bomb] = await left(database)
        pauses.append(bomb.available_at - before)
        await let_pauses_pass(database)
    assert [round(pause / 2**number) for number, pause in enumerate(pauses[:3])] == [1, 1, 1]
    assert all(abs(pause - 300.0) < 60.0 for pause in pauses[10:])
    assert bomb.set_aside_at is None
    with caplog.at_level(logging.ERROR):
        await relay(database, mailbox.handlers)
    assert "was set aside after 20 tries: ConnectionError: nobody is at home" in caplog.text
    await let_pauses_pass(database)
    assert await relay(database, {**mailbox.handlers, "bomb": mailbox.deliver}) == 0, "it is not tried again"
    [bomb] = await left(database)
    assert bomb.set_aside_at is not None


async def test_an_unknown_kind_is_set_aside_at_once(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    await put(database, "riddle", "letter")
    mailbox = Mailbox()
    with caplog.at_level(logging.ERROR):
        assert await relay(database, mailbox.handlers) == 1
    assert "'riddle'" in caplog.text
    [riddle] = await left(database)
    assert (riddle.attempts, riddle.set_aside_at is not None) == (1, True)


async def test_what_was_sent_before_the_relay_was_ended_is_not_sent_again(database: Database) -> None:
    mailbox, started = Mailbox(), asyncio.Event()

    async def hang(payload: dict[str, Any]) -> None:
        started.set()
        await asyncio.Event().wait()

    await put(database, "letter", "hang")
    relaying = asyncio.create_task(relay(database, {**mailbox.handlers, "hang": hang}))
    await started.wait()
    relaying.cancel()
    await asyncio.wait([relaying])
    assert [message.kind for message in await left(database)] == ["hang"]


def test_every_kind_has_one_handler() -> None:
    assert {DISPATCH, DELETE_OBJECTS} <= HANDLERS.keys()
    with pytest.raises(ValueError, match="two handlers"):
        handles(DISPATCH)(_cut_off_with_services)


async def _cut_off_with_services(services: object, payload: dict[str, Any]) -> None: ...


async def test_health_tells_of_messages_that_were_set_aside(api: Api) -> None:
    assert "warnings" not in (await api.client.get("/healthz")).json()
    async with api.services.database.write() as session:
        session.add(OutboxMessage(kind="riddle", payload={}, available_at=now(), set_aside_at=now()))
    api.app.state.health._until = 0.0
    health = (await api.client.get("/healthz")).json()
    assert (health["status"], list(health["warnings"])) == ("ok", ["outbox"])
    assert health["warnings"]["outbox"].endswith("set aside: 1")
