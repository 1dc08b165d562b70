"""Live events as server-sent events. The rows are the source: a client that reconnects misses none.

All streams of a process share one reader, with its own database connection: it reads a job's events when the bell
rings for it, and gives streams at the same event the same rows. A stream holds one page at most, since it requests the
next one when its client has received the last.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

from fastapi import Depends, Request
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import DATABASE_LOST, Database, first_line
from app.core.errors import TooMany, Unavailable
from app.core.tasks import is_set, stop_tasks
from app.jobs import repository
from app.jobs.bell import run_bell
from app.jobs.repository import EventState
from app.jobs.schemas.history import EventView
from app.jobs.tables import EventRow
from app.projects.auth import Caller, KeyRing
from app.projects.repository import valid_keys

KEEPALIVE_SECONDS = 15.0
"""Time without an event after which a comment is sent, so that proxies keep the connection."""
POLL_SECONDS = 5.0
"""Interval at which the jobs and keys of all streams are checked, for lost rings and expired keys."""
RETRY_SECONDS = 1.0
PAGE = 50
BATCH = 500
"""Most jobs or keys in one statement."""
log = logging.getLogger(__name__)


class StreamPage(NamedTuple):
    """Events after a number; `over`: the job is final or deleted, and there are no more."""

    chunks: Sequence[tuple[int, bytes]]
    over: bool


@dataclass(eq=False)
class ClientStream:
    """One client that follows a job."""

    job_id: str
    key_id: str
    seq: int
    """Number of the last event that was sent."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False
    """Its key is no longer valid."""


class StreamReader:
    """All streams of one process."""

    def __init__(self, database: Database, ring: KeyRing, most: int, most_per_key: int) -> None:
        self._database, self._key_ring = database, ring
        self._most, self._most_per_key = most, most_per_key
        self._streams: set[ClientStream] = set()
        self._by_key: Counter[str] = Counter()
        self._asked: dict[tuple[str, int], asyncio.Future[StreamPage]] = {}
        self._wanted, self._needed, self._poll_now = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Read within the context."""
        self._key_ring.when_forgotten = self._end_key
        work = (self._read_forever(), self._poll_forever(), run_bell(self._database, self._ring, self._needed))
        tasks = [asyncio.create_task(each) for each in work]
        try:
            yield
        finally:
            await stop_tasks(tasks)
            await self._database.close()

    def open(self, caller: Caller, job_id: str, seq: int) -> AsyncIterator[bytes]:
        """Server-sent events of the job after number `seq`; they end with the job, or with the caller's key.

        Raises `TooMany` or `Unavailable` when there are too many streams.
        """
        if self._by_key[caller.key_id] >= self._most_per_key:
            raise TooMany("too_many_streams", f"one key may have {self._most_per_key} open streams of events")
        if len(self._streams) >= self._most:
            raise Unavailable("too_many_streams", f"this server has its limit of {self._most} event streams open")
        stream = ClientStream(job_id, caller.key_id, seq)
        self._add(stream)
        events = self._events(stream)
        weakref.finalize(events, self._remove, stream)  # for a client that disconnects before the first event
        return events

    async def _events(self, stream: ClientStream) -> AsyncIterator[bytes]:
        try:
            while not stream.ended:
                stream.news.clear()
                page = await self._page(stream.job_id, stream.seq)
                for seq, chunk in page.chunks:
                    yield chunk
                    stream.seq = seq
                if page.over:
                    return
                while not page.chunks and not await is_set(stream.news, KEEPALIVE_SECONDS):
                    yield KEEPALIVE_COMMENT
        finally:
            self._remove(stream)

    def _add(self, stream: ClientStream) -> None:
        self._streams.add(stream)
        self._by_key[stream.key_id] += 1
        self._needed.set()

    def _remove(self, stream: ClientStream) -> None:
        if stream not in self._streams:
            return
        self._streams.remove(stream)
        self._by_key[stream.key_id] -= 1
        self._by_key += Counter()  # drops counts of zero
        if not self._streams:
            self._needed.clear()

    def _page(self, job_id: str, seq: int) -> asyncio.Future[StreamPage]:
        """The page after event `seq`; concurrent requests for the same page share it."""
        if (job_id, seq) not in self._asked:
            self._asked[job_id, seq] = asyncio.get_running_loop().create_future()
            self._wanted.set()
        return asyncio.shield(self._asked[job_id, seq])

    def _ring(self, job_id: str | None) -> None:
        if job_id is None:
            self._poll_now.set()
        for stream in [stream for stream in self._streams if stream.job_id == job_id]:
            stream.news.set()

    def _end_key(self, key_id: str) -> None:
        for stream in self._streams:
            if stream.key_id == key_id:
                stream.ended = True
                stream.news.set()

    async def _read_forever(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._answer()
            except DATABASE_LOST as error:
                log.warning("events can't be read: %s; retrying", first_line(error))
                await asyncio.sleep(RETRY_SECONDS)
                self._wanted.set()

    async def _answer(self) -> None:
        while self._asked:
            asked = list(self._asked)[:BATCH]
            async with self._database.read() as session:
                states = await repository.event_states(session, {job_id for job_id, _ in asked})
                for job_id, seq in asked:
                    page = await _read(session, job_id, seq, states.get(job_id))
                    self._asked.pop((job_id, seq)).set_result(page)

    async def _poll_forever(self) -> None:
        while True:
            await self._needed.wait()
            await is_set(self._poll_now, POLL_SECONDS)
            self._poll_now.clear()
            try:
                await self._poll_all()
            except DATABASE_LOST as error:
                log.warning("new events can't be polled: %s; retrying", first_line(error))
                await asyncio.sleep(RETRY_SECONDS)

    async def _poll_all(self) -> None:
        """Wake the streams whose job has new events, or whose key is no longer valid."""
        streams = list(self._streams)
        async with self._database.read() as session:
            states, valid = dict[str, EventState](), set[str]()
            for ids in _batches({stream.job_id for stream in streams}):
                states |= await repository.event_states(session, ids)
            for ids in _batches({stream.key_id for stream in streams}):
                valid |= await valid_keys(session, ids)
        for stream in streams:
            state = states.get(stream.job_id)
            stream.ended = stream.ended or stream.key_id not in valid
            if stream.ended or state is None or state.over or state.last_seq > stream.seq:
                stream.news.set()


async def _read(session: AsyncSession, job_id: str, seq: int, state: EventState | None) -> StreamPage:
    if state is None or state.last_seq <= seq:
        return StreamPage((), state is None or state.over)
    events = await repository.events_after(session, job_id, seq, PAGE)
    over = state.over and (not events or events[-1].seq >= state.last_seq)
    return StreamPage([(event.seq, _chunk(event)) for event in events], over)


def _chunk(event: EventRow) -> bytes:
    body = EventView.of(event).model_dump_json()
    return format_sse_event(data_str=body, event=event.type, id=str(event.seq))


def _batches(ids: set[str]) -> Iterator[list[str]]:
    ordered = sorted(ids)
    return (ordered[start : start + BATCH] for start in range(0, len(ordered), BATCH))


async def _stream_reader(request: Request) -> StreamReader:
    reader: StreamReader = request.app.state.stream_reader
    return reader


StreamReaderDep = Annotated[StreamReader, Depends(_stream_reader)]
