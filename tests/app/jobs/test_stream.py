"""Streams of events: one reader for all of them, limits, and what ends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NoReturn

import httpx
import pytest
from sqlalchemy import select, text, update

from app.core.clock import now
from app.core.settings import Settings
from app.jobs import bell, service, stream
from app.jobs.stream import StreamReader
from app.jobs.tables import JobRow
from app.projects.auth import Caller
from app.projects.tables import ApiKey
from tests.app.conftest import Api, running
from tests.app.jobs.builders import PROJECT, add_inputs, job_spec

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def never_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found by looking from time to time."""
    monkeypatch.setattr(stream, "POLL_SECONDS", 10_000.0)


async def submit(api: Api) -> str:
    """A job that nobody runs."""
    async with api.services.database.write() as session:
        await add_inputs(session, PROJECT)
    return (await service.create(api.services.database, PROJECT, job_spec())).id


async def caller(api: Api) -> Caller:
    """The caller with the first key, for the project of the job."""
    async with api.services.database.read() as session:
        key_id = (await session.scalars(select(ApiKey.id))).first()
    assert key_id is not None
    return Caller(PROJECT, key_id, frozenset({"read"}))


def reader(api: Api) -> StreamReader:
    found: StreamReader = api.app.state.stream_reader
    return found


async def cancel(api: Api, job_id: str) -> None:
    async with api.services.database.write() as session:
        await service.cancel(session, PROJECT, job_id)


async def collect(events: AsyncIterator[bytes], begun: asyncio.Event | None = None) -> list[bytes]:
    chunks = []
    async for chunk in events:
        chunks.append(chunk)
        if begun is not None:
            begun.set()
    return chunks


async def test_an_event_reaches_a_stream_by_the_bell_alone(api: Api, never_looks: None) -> None:
    job_id, begun = await submit(api), asyncio.Event()
    following = asyncio.create_task(collect(reader(api).open(await caller(api), job_id, 0), begun))
    await begun.wait()
    await cancel(api, job_id)
    assert [chunk.split(b"\n")[-3] for chunk in await following] == [b"id: 1", b"id: 2"]


async def test_an_event_whose_ring_was_lost_is_found_all_the_same(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(*_: object) -> NoReturn:
        await asyncio.Future()
        raise AssertionError("unreachable")

    monkeypatch.setattr(stream, "run_bell", silent)
    monkeypatch.setattr(stream, "POLL_SECONDS", 0.05)
    async with running(settings) as api:
        job_id, begun = await submit(api), asyncio.Event()
        following = asyncio.create_task(collect(reader(api).open(await caller(api), job_id, 0), begun))
        await begun.wait()
        await cancel(api, job_id)
        assert len(await following) == 2


async def listening(api: Api) -> None:
    """Wait until the bell's connection listens."""
    found = text("select count(*) from pg_stat_activity where query like 'LISTEN %' and state = 'idle'")
    while True:
        async with api.services.database.read() as session:
            if await session.scalar(found):
                return
        await asyncio.sleep(0.01)


async def test_the_bell_rings_again_after_its_connection_was_lost(
    api: Api, never_looks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if api.services.database.is_sqlite:
        pytest.skip("there is no connection to lose")
    monkeypatch.setattr(bell, "RETRY_SECONDS", 0.01)
    job_id, begun = await submit(api), asyncio.Event()
    following = asyncio.create_task(collect(reader(api).open(await caller(api), job_id, 0), begun))
    await begun.wait()
    await listening(api)
    async with api.services.database.write() as session:
        ended = text("select count(pg_terminate_backend(pid)) from pg_stat_activity where query like 'LISTEN %'")
        assert await session.scalar(ended)
    await cancel(api, job_id)
    assert len(await following) == 2


async def test_three_hundred_streams_leave_requests_their_connections(settings: Settings, never_looks: None) -> None:
    small = settings.model_copy(update={"database_pool_size": 2})
    async with running(small) as api:
        job_id, follower = await submit(api), await caller(api)
        begun = [asyncio.Event() for _ in range(300)]
        following = [asyncio.create_task(collect(reader(api).open(follower, job_id, 0), started)) for started in begun]
        await asyncio.gather(*(started.wait() for started in begun))
        answers = await asyncio.gather(*(api.client.get("/v1/jobs") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        await cancel(api, job_id)
        assert {len(chunks) for chunks in await asyncio.gather(*following)} == {2}


async def test_a_revoked_key_ends_its_streams_at_once(api: Api, never_looks: None) -> None:
    job_id, begun = await submit(api), asyncio.Event()
    made = (await api.client.post("/v1/keys", json={"name": "short", "scopes": ["read"]})).json()
    short = Caller(PROJECT, made["id"], frozenset({"read"}))
    following = asyncio.create_task(collect(reader(api).open(short, job_id, 0), begun))
    await begun.wait()
    await api.client.delete(f"/v1/keys/{made['id']}")
    assert len(await following) == 1


@pytest.mark.parametrize("change", ["revoked_at", "expires_at"])
async def test_a_key_that_another_process_revoked_or_that_expired_ends_its_streams(
    api: Api, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "POLL_SECONDS", 0.05)
    job_id, begun, follower = await submit(api), asyncio.Event(), await caller(api)
    following = asyncio.create_task(collect(reader(api).open(follower, job_id, 0), begun))
    await begun.wait()
    async with api.services.database.write() as session:
        await session.execute(update(ApiKey).where(ApiKey.id == follower.key_id).values({change: now() - 1.0}))
    assert len(await following) == 1


async def test_a_stream_of_a_job_that_is_gone_ends(api: Api) -> None:
    assert await collect(reader(api).open(await caller(api), "job_gone", 0)) == []


async def test_a_quiet_stream_is_kept_open_by_comments(
    api: Api, never_looks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "KEEPALIVE_SECONDS", 0.01)
    events = reader(api).open(await caller(api), await submit(api), 1)
    assert [await anext(events) for _ in range(2)] == [b": ping\n\n"] * 2


@pytest.mark.parametrize(
    ("limit", "status", "type"),
    [("max_streams_per_key", 429, "rate_limited"), ("max_streams", 503, "unavailable")],
)
async def test_more_streams_than_allowed_are_refused_and_closed_ones_make_room(
    settings: Settings, limit: str, status: int, type: str
) -> None:
    async with running(settings.model_copy(update={limit: 1})) as api:
        job_id, follower = await submit(api), await caller(api)
        async with api.services.database.write() as session:
            await session.execute(update(JobRow).values(project_id=api.project_id))
        open_one = reader(api).open(follower, job_id, 0)
        await anext(open_one)
        refused = await api.client.get(f"/v1/jobs/{job_id}/events", headers=STREAM)
        assert (refused.status_code, refused.json()["error"]["type"]) == (status, type)
        assert refused.json()["error"]["code"] == "too_many_streams"
        assert int(refused.headers["Retry-After"]) > 0
        await open_one.aclose()  # type: ignore[attr-defined]  # it is a generator
        del open_one
        await api.client.post(f"/v1/jobs/{job_id}/cancel")
        accepted: httpx.Response = await api.client.get(f"/v1/jobs/{job_id}/events", headers=STREAM)
        assert accepted.status_code == 200


async def test_a_stream_that_nobody_reads_makes_room(settings: Settings) -> None:
    async with running(settings.model_copy(update={"max_streams": 1})) as api:
        follower = await caller(api)
        for _ in range(3):
            reader(api).open(follower, "job_gone", 0)
