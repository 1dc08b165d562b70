"""Reads single jobs for many clients at once.

Clients poll. While one query runs, the ids that further requests ask for are gathered, and the next query reads them
all: under load the cost of a round trip is shared, at rest nothing is added. Every answer is read after its request.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import Depends, Request

from app.core.database import Database
from app.core.errors import NotFound
from app.jobs import repository
from app.jobs.schemas import JobView


class JobReader:
    """Shared by all requests of one event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[str, asyncio.Future[tuple[str, bytes] | None]] = {}
        self._running: asyncio.Task[None] | None = None

    async def read(self, project_id: str, job_id: str) -> bytes:
        """The project's job as the JSON of its `JobView`; raises `NotFound`."""
        if job_id not in self._waiting:
            self._waiting[job_id] = asyncio.get_running_loop().create_future()
        future = self._waiting[job_id]
        if self._running is None:
            self._running = asyncio.create_task(self._drain())
        found = await asyncio.shield(future)
        if found is None or found[0] != project_id:
            raise NotFound("job", job_id)
        return found[1]

    async def _drain(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, {}
                await self._answer(batch)
        finally:
            self._running = None

    async def _answer(self, batch: dict[str, asyncio.Future[tuple[str, bytes] | None]]) -> None:
        try:
            found = await self._query(list(batch))
        except Exception as error:
            for future in batch.values():
                future.set_exception(error)
            return
        for job_id, future in batch.items():
            future.set_result(found.get(job_id))

    async def _query(self, ids: list[str]) -> dict[str, tuple[str, bytes]]:
        async with self._database.read() as session:
            jobs = await repository.by_ids(session, ids)
            phases = await repository.phases_of(session, list(jobs))
            positions = {job.id: await repository.queue_position(session, job) for job in jobs.values()}
        return {
            job.id: (job.project_id, JobView.of(job, phases[job.id], positions[job.id]).model_dump_json().encode())
            for job in jobs.values()
        }


def _job_reader(request: Request) -> JobReader:
    reader: JobReader = request.app.state.job_reader
    return reader


JobReaderDep = Annotated[JobReader, Depends(_job_reader)]
"""The reader that the application's lifespan keeps in `app.state.job_reader`."""
