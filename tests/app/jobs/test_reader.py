"""Reading jobs for many at once: always what the database says, however often it was said before."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from app.core.database import Database
from app.core.errors import NotFound
from app.jobs import leases, publishing, reader, reporting, repository, service
from app.jobs.reader import JobReader
from app.jobs.schemas.job import JobView
from tests.app.jobs.builders import PROJECT, must_claim, running, submit
from worker.protocol import StepProgress


async def read(jobs: JobReader, job_id: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(await jobs.read(PROJECT, job_id))
    return document


async def fresh(database: Database, job_id: str) -> dict[str, Any]:
    """The job as it is when nothing was kept."""
    async with database.read() as session:
        view: JobView = await service.view(session, await service.get(session, PROJECT, job_id))
    document: dict[str, Any] = view.model_dump(mode="json")
    return document


async def test_every_change_is_seen_at_once(database: Database) -> None:
    jobs = JobReader(database)
    job_id = await submit(database)
    assert await read(jobs, job_id) == await fresh(database, job_id)
    async with database.write() as session:
        await service.reprioritise(session, PROJECT, job_id, 70)
    assert (await read(jobs, job_id))["priority"] == 70
    lease = await must_claim(database)
    progress = StepProgress(step=3, total_steps=9, epoch=0.5, samples_per_second=10.0, seconds_left=1.0)
    changes = [
        leases.start,
        lambda session, lease: reporting.begin_phase(session, lease, "training"),
        lambda session, lease: reporting.record(session, lease, progress, []),
        lambda session, lease: reporting.begin_phase(session, lease, "evaluating"),
        lambda session, lease: publishing.publish_checkpoint(session, lease, 3, []),
        lambda session, lease: leases.fail(session, lease, fault="user", code="nan_loss", message="not finite"),
    ]
    seen = [await read(jobs, job_id)]
    for change in changes:
        async with database.write() as session:
            await change(session, lease)
        seen.append(await read(jobs, job_id))
        assert seen[-1] == await fresh(database, job_id)
        assert seen[-1] != seen[-2]


async def test_a_job_that_did_not_change_is_not_made_again(database: Database) -> None:
    jobs = JobReader(database)
    job_id = (await running(database)).job_id
    assert await jobs.read(PROJECT, job_id) is await jobs.read(PROJECT, job_id)


async def test_places_in_the_queue_follow_priority_and_age(database: Database) -> None:
    jobs = JobReader(database)
    ids = [await submit(database, priority=priority) for priority in (50, 50, 90)]
    elsewhere = await submit(database, resources={"queue": "gpu"})
    places = {id: (await read(jobs, id))["queue_position"] for id in [*ids, elsewhere]}
    assert list(places.values()) == [1, 2, 0, 0]
    assert (await must_claim(database)).job_id == ids[2]
    assert [(await read(jobs, id))["queue_position"] for id in ids] == [0, 1, None]


async def test_a_place_too_far_back_is_not_counted(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [await submit(database) for _ in range(3)]
    monkeypatch.setattr(repository, "_POSITIONS", repository._positions(cap=2))
    async with database.read() as session:
        assert await repository.queue_positions(session, ids) == dict(zip(ids, (0, 1, None), strict=True))


async def test_no_more_answers_are_kept_than_allowed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "CACHED", 2)
    jobs = JobReader(database)
    first, second, third = [await submit(database) for _ in range(3)]
    for job_id in (first, second, first, third):
        await read(jobs, job_id)
    assert set(jobs._cache) == {first, third}


async def test_many_at_once_each_get_their_own_in_several_batches(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "BATCH", 2)
    jobs = JobReader(database)
    ids = [await submit(database) for _ in range(5)]
    found = await asyncio.gather(*(read(jobs, id) for id in ids * 2))
    assert [job["id"] for job in found] == ids * 2


async def test_a_client_that_leaves_does_not_disturb_the_others(database: Database) -> None:
    jobs = JobReader(database)
    job_id = await submit(database)
    leaving, staying = (asyncio.create_task(jobs.read(PROJECT, job_id)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert json.loads(await staying)["id"] == job_id


async def test_missing_and_foreign_jobs_are_not_found(database: Database) -> None:
    jobs = JobReader(database)
    job_id = await submit(database)
    with pytest.raises(NotFound):
        await jobs.read(PROJECT, "job_missing")
    with pytest.raises(NotFound):
        await jobs.read("proj_other", job_id)


async def test_a_failing_database_fails_those_who_ask_and_nobody_after(database: Database, tmp_path: Path) -> None:
    jobs = JobReader(database)
    job_id = await submit(database)
    empty = Database(f"sqlite+aiosqlite:///{tmp_path / 'empty.db'}")
    jobs._database = empty
    with pytest.raises(OperationalError):
        await jobs.read(PROJECT, job_id)
    jobs._database = database
    assert (await read(jobs, job_id))["id"] == job_id
    await empty.close()
