"""Reads single jobs for many clients at once.

Clients poll, and most polls find nothing new. While one query runs, the ids of further requests are collected, and the
next query reads them all: under load the cost of a round trip is shared, and an idle service has no added delay. If the
row of a job has not changed, the response is the cached bytes. Every response is read after its request.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, NamedTuple

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import Database
from app.core.errors import NotFound
from app.jobs import repository, workers
from app.jobs.lifecycle import Status
from app.jobs.repository import State
from app.jobs.schemas.job import JobView
from app.jobs.tables import JobRow, PhaseRow
from app.jobs.workers import Capability

CACHED = 1024
"""Cached responses, a few KB each."""
BATCH = 128
"""Most jobs in one query."""


Present = frozenset[Capability]
"""Capabilities of the available workers."""


class ReadResult(NamedTuple):
    """Response for a job, and the state from which it was built."""

    project_id: str
    state: State
    body: bytes
    present: Present | None
    """The workers that were available when a queued job was read."""


class ReadRequest(NamedTuple):
    """A request that waits for a job."""

    job_id: str
    answer: asyncio.Future[ReadResult | None]


class JobReader:
    """Reads jobs for all requests of one event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._asked: list[ReadRequest] = []
        self._cache: dict[str, ReadResult] = {}
        self._running: asyncio.Task[None] | None = None

    async def read(self, project_id: str, job_id: str) -> bytes:
        """The project's job as the JSON of its `JobView`; raises `NotFound`."""
        asked = ReadRequest(job_id, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        if self._running is None:
            self._running = asyncio.create_task(self._drain())
        answer = await asked.answer
        if answer is None or answer.project_id != project_id:
            raise NotFound("job", job_id)
        return answer.body

    async def _drain(self) -> None:
        try:
            while self._asked:
                await asyncio.sleep(0)  # includes requests that have arrived by now
                batch, self._asked = self._asked[:BATCH], self._asked[BATCH:]
                await self._answer(batch)
        finally:
            self._running = None

    async def _answer(self, batch: list[ReadRequest]) -> None:
        try:
            found = await self._find({asked.job_id for asked in batch})
        except Exception as error:
            for asked in batch:
                if not asked.answer.done():
                    asked.answer.set_exception(error)
            return
        for asked in batch:
            if not asked.answer.done():  # its client may have disconnected
                asked.answer.set_result(found.get(asked.job_id))

    async def _find(self, ids: set[str]) -> dict[str, ReadResult]:
        async with self._database.read() as session:
            states = await repository.states(session, ids)
            cached = {id: self._cache[id] for id in states.keys() & self._cache.keys()}
            present = await workers.present(session) if any(state.is_queued for state in states.values()) else None
            known = {
                id: answer
                for id, answer in cached.items()
                if answer.state == states[id] and (answer.present is None or answer.present == present)
            }
            made = await _make(session, {id: states[id].queue_position for id in states.keys() - known.keys()}, present)
        self._store(known | made)
        return known | made

    def _store(self, answers: dict[str, ReadResult]) -> None:
        """Add these to the cache, and evict the least recently used."""
        for id in answers:
            self._cache.pop(id, None)
        self._cache |= answers
        while len(self._cache) > CACHED:
            del self._cache[next(iter(self._cache))]


async def _make(
    session: AsyncSession, positions: dict[str, int | None], present: Present | None
) -> dict[str, ReadResult]:
    """Responses for the jobs with these positions in the queue."""
    if not positions:
        return {}
    jobs = await repository.by_ids(session, list(positions))
    phases = await repository.phases_of(session, list(jobs))
    return {id: _answer(job, phases[id], positions[id], present) for id, job in jobs.items()}


def _answer(job: JobRow, phases: list[PhaseRow], position: int | None, present: Present | None) -> ReadResult:
    seen = present if job.status == Status.QUEUED else None
    reason = None if seen is None else workers.why_unserved(job.spec["resources"], seen)
    body = JobView.of(job, phases, position, reason).model_dump_json().encode()
    return ReadResult(job.project_id, State.of(job, position), body, seen)


async def _job_reader(request: Request) -> JobReader:
    reader: JobReader = request.app.state.job_reader
    return reader


JobReaderDep = Annotated[JobReader, Depends(_job_reader)]
"""The reader in `app.state.job_reader`, created by the application's lifespan."""
