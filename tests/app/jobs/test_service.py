"""What may be submitted, and what users may ask of a job."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import func, select

from app.core.database import Database
from app.core.errors import Invalid, NotFound, WrongState
from app.jobs import leases, service
from app.jobs.lifecycle import Status
from app.jobs.service import Idempotency
from app.jobs.tables import JobRow
from tests.app.jobs.builders import PROJECT, add_inputs, claim, job_spec, load, running, submit


async def test_a_seed_is_drawn_and_kept_when_none_is_given(database: Database) -> None:
    first, second = [await load(database, await submit(database)) for _ in range(2)]
    assert isinstance(first.spec["seed"], int)
    assert first.spec["seed"] != second.spec["seed"]


async def test_the_stored_spec_has_every_default_filled(database: Database) -> None:
    job = await load(database, await submit(database, seed=7))
    assert job.spec == job_spec(seed=7).model_dump(mode="json")


@pytest.mark.parametrize(
    ("fields", "params"),
    [
        ({"data": {"train": "file_none"}}, ["data.train"]),
        ({"data": {"train": f"file_{PROJECT}", "eval": "file_none"}}, ["data.eval"]),
        ({"data": {"train": f"file_{PROJECT}", "label_key": "labels"}}, ["data.label_key"]),
        ({"teacher": {"model": "model_none"}, "recipe": {"losses": [{"kind": "kd"}]}}, ["teacher.model"]),
        ({"recipe": {"losses": [{"kind": "kd"}]}}, ["teacher"]),
        ({"student": {"architecture": "pretrained", "model": "model_none"}}, ["student.model"]),
        ({"student": {"architecture": "pretrained", "uri": "s3://bucket/model"}}, ["student.uri"]),
        ({"teacher": {"model": f"model_{PROJECT}"}}, ["teacher"]),
        ({"student": {"architecture": "vit", "patch_size": 3}}, ["student.patch_size"]),
        ({"data": {"train": "file_none"}, "recipe": {"losses": [{"kind": "kd"}]}}, ["data.train", "teacher"]),
    ],
)
async def test_all_wrong_fields_are_told_at_once_and_nothing_is_stored(
    database: Database, fields: dict[str, Any], params: list[str]
) -> None:
    with pytest.raises(Invalid) as caught:
        await submit(database, **fields)
    assert [error.param for error in caught.value.errors] == params
    async with database.read() as session:
        assert await session.scalar(select(func.count()).select_from(JobRow)) == 0


async def test_another_project_s_inputs_are_as_good_as_missing(database: Database) -> None:
    async with database.write() as session:
        await add_inputs(session, "proj_other")
    with pytest.raises(Invalid):
        await submit(database, data={"train": "file_proj_other"})


async def test_another_project_s_job_is_as_good_as_missing(database: Database) -> None:
    job_id = await submit(database)
    async with database.write() as session:
        with pytest.raises(NotFound):
            await service.cancel(session, "proj_other", job_id)


async def test_equal_requests_with_one_key_make_one_job_however_many_come_at_once(database: Database) -> None:
    idempotent = Idempotency("key", "digest", 100.0)
    made = await asyncio.gather(*(service.create(database, PROJECT, job_spec(), idempotent) for _ in range(6)))
    again = await service.create(database, PROJECT, job_spec(), idempotent)
    assert {job.id for job in made} == {again.id}


async def test_a_key_with_another_body_is_refused(database: Database) -> None:
    await service.create(database, PROJECT, job_spec(), Idempotency("key", "one", 100.0))
    with pytest.raises(Invalid):
        await service.create(database, PROJECT, job_spec(), Idempotency("key", "two", 100.0))


async def test_a_key_may_be_used_again_after_its_request_was_refused(database: Database) -> None:
    with pytest.raises(Invalid):
        await service.create(database, PROJECT, job_spec(data={"train": "none"}), Idempotency("key", "one", 100.0))
    await service.create(database, PROJECT, job_spec(), Idempotency("key", "two", 100.0))


async def test_a_key_is_free_again_when_its_time_is_over(database: Database) -> None:
    first = await service.create(database, PROJECT, job_spec(), Idempotency("key", "one", 0.0))
    second = await service.create(database, PROJECT, job_spec(), Idempotency("key", "two", 100.0))
    assert second.id != first.id


async def ask(database: Database, verb: str, job_id: str) -> JobRow:
    async with database.write() as session:
        if verb == "pause":
            return await service.pause(session, PROJECT, job_id, 60.0)
        asked: JobRow = await getattr(service, verb)(session, PROJECT, job_id)
        return asked


async def test_a_queued_job_is_cancelled_and_paused_at_once(database: Database) -> None:
    assert (await ask(database, "cancel", await submit(database))).status == Status.CANCELLED
    assert (await ask(database, "pause", await submit(database))).status == Status.PAUSED


async def test_a_paused_job_goes_on_when_resumed(database: Database) -> None:
    job_id = await submit(database)
    await ask(database, "pause", job_id)
    assert await claim(database) is None
    await ask(database, "resume", job_id)
    lease = await claim(database)
    assert lease is not None
    assert lease.job_id == job_id


async def test_asking_twice_changes_nothing(database: Database) -> None:
    lease = await running(database)
    first = await ask(database, "cancel", lease.job_id)
    second = await ask(database, "cancel", lease.job_id)
    assert (first.status, first.last_seq) == (second.status, second.last_seq) == (Status.CANCELLING, first.last_seq)


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume"])
async def test_a_final_job_can_not_be_moved(database: Database, verb: str) -> None:
    lease = await running(database)
    async with database.write() as session:
        await leases.fail(session, lease, fault="user", code="x", message="x")
    with pytest.raises(WrongState):
        await ask(database, verb, lease.job_id)


async def test_the_priority_of_a_queued_job_can_be_changed(database: Database) -> None:
    first, second = await submit(database), await submit(database)
    async with database.write() as session:
        await service.reprioritise(session, PROJECT, second, 99)
    lease = await claim(database)
    assert lease is not None
    assert lease.job_id == second
    async with database.write() as session:
        with pytest.raises(WrongState):
            await service.reprioritise(session, PROJECT, second, 1)
    assert (await load(database, first)).priority == 50
