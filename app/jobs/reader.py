"""Reads single jobs for many clients at once.

Clients poll, and most polls find nothing new. While one query runs, the ids that further requests ask for are gathered,
and the next query reads them all: under load the cost of a round trip is shared, at rest nothing is added. A job whose
row is as it was is answered with the bytes that were made of it before. Every answer is read after its request.
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

KEPT = 1024
"""Answers that are kept, a few KB each."""
BATCH = 128
"""Most jobs that one query reads."""


Present = frozenset[Capability]
"""What the workers that are there can do."""


class ReadResult(NamedTuple):
    """What was made of a job, and the state that it was made of."""

    project_id: str
    state: State
    body: bytes
    present: Present | None
    """The workers that were there when a queued job was looked at."""


class ReadRequest(NamedTuple):
    """A request that waits for a job's answer."""

    job_id: str
    answer: asyncio.Future[ReadResult | None]


class JobReader:
    """Shared by all requests of one event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._asked: list[ReadRequest] = []
        self._kept: dict[str, ReadResult] = {}
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
                await asyncio.sleep(0)  # requests that have arrived by now come along
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
            if not asked.answer.done():  # its client may have left
                asked.answer.set_result(found.get(asked.job_id))

    async def _find(self, ids: set[str]) -> dict[str, ReadResult]:
        async with self._database.read() as session:
            states = await repository.states(session, ids)
            kept = {id: self._kept[id] for id in states.keys() & self._kept.keys()}
            present = await workers.present(session) if any(state.is_queued for state in states.values()) else None
            known = {
                id: answer
                for id, answer in kept.items()
                if answer.state == states[id] and (answer.present is None or answer.present == present)
            }
            made = await _make(session, {id: states[id].queue_position for id in states.keys() - known.keys()}, present)
        self._keep(known | made)
        return known | made

    def _keep(self, answers: dict[str, ReadResult]) -> None:
        """Put these at the end of those that are kept, and drop what has not been asked for the longest."""
        for id in answers:
            self._kept.pop(id, None)
        self._kept |= answers
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]


async def _make(
    session: AsyncSession, positions: dict[str, int | None], present: Present | None
) -> dict[str, ReadResult]:
    """Answers for the jobs with these places in the queue."""
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
"""The reader that the application's lifespan keeps in `app.state.job_reader`."""
