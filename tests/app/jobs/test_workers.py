"""Which workers are there, and whether one of them takes a job that waits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import update

from app.core.clock import now
from app.core.database import Database
from app.jobs import leases, workers
from app.jobs.reader import JobReader
from app.jobs.tables import Worker
from app.jobs.workers import Capability, why_unserved
from tests.app.jobs.builders import PROJECT, job_spec, submit

CPU = Capability(frozenset({"any", "cpu"}), gpus=1, nodes=1)
GPU = Capability(frozenset({"any", "gpu"}), gpus=2, nodes=1)
MANY = Capability(frozenset({"any", "gpu"}), gpus=1, nodes=4)


@pytest.mark.parametrize(
    ("resources", "there", "says"),
    [
        ({"queue": "any"}, [], "no worker is running"),
        ({"queue": "any"}, [CPU], None),
        ({"queue": "gpu"}, [CPU], "no worker serves the queue 'gpu'"),
        ({"queue": "gpu"}, [CPU, GPU], None),
        ({"queue": "gpu", "processes": 2}, [GPU], None),
        (
            {"queue": "gpu", "processes": 4},
            [GPU, MANY],
            "needs 4 GPUs on a machine, and no worker takes",
        ),
        ({"queue": "gpu", "processes": 2, "nodes": 2}, [GPU, MANY], "needs 2 GPUs on a machine"),
        ({"queue": "cpu", "processes": 4}, [CPU], None),
        ({"queue": "any", "nodes": 2}, [CPU, GPU], "needs 2 machines, and no worker"),
        ({"queue": "any", "nodes": 2}, [CPU, MANY], None),
    ],
)
def test_a_job_that_nobody_takes_is_told_why(
    resources: dict[str, Any], there: list[Capability], says: str | None
) -> None:
    found = why_unserved(resources, there)
    assert found is None if says is None else found is not None and says in found


@pytest.mark.parametrize("worker", [CPU, GPU, MANY])
@pytest.mark.parametrize(
    "resources",
    [
        {"queue": queue, "processes": processes, "nodes": nodes}
        for queue in ("any", "cpu", "gpu")
        for processes, nodes in ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2))
        if queue != "any" or processes * nodes == 1  # several processes need to know what they share
    ],
)
async def test_what_is_told_is_what_a_claim_does(
    worker: Capability, resources: dict[str, Any], database: Database
) -> None:
    extra: dict[str, Any] = {"resources": resources}
    job_id = await submit(database, **extra)
    async with database.write() as session:
        lease = await leases.claim(
            session,
            owner="w",
            queues=sorted(worker.queues),
            lease_seconds=60.0,
            job_id=job_id,
            gpus=worker.gpus,
            nodes=worker.nodes,
        )
    told = why_unserved(job_spec(**extra).resources.model_dump(), [worker])
    assert (lease is None) == (told is not None)


async def test_workers_come_and_go(database: Database) -> None:
    async with database.write() as session:
        await workers.announce(session, "one", ["cpu", "any"], 1, 1)
        await workers.announce(session, "two", ["gpu"], 2, 3)
    async with database.write() as session:
        assert await workers.present(session) == {CPU, Capability(frozenset({"gpu"}), 2, 3)}
        await workers.leave(session, "two")
        assert await workers.present(session) == {CPU}
        await session.execute(update(Worker).values(seen_at=now() - workers.ABSENT_SECONDS - 1.0))
        assert await workers.present(session) == frozenset()
        await workers.announce(session, "one", ["cpu", "any"], 1, 1)
        assert await workers.present(session) == {CPU}


async def test_the_reason_is_told_until_a_worker_comes(database: Database) -> None:
    jobs = JobReader(database)
    job_id = await submit(database)

    async def reason() -> str | None:
        document: dict[str, Any] = json.loads(await jobs.read(PROJECT, job_id))
        told: str | None = document["reason"]
        return told

    assert "no worker is running" in (await reason() or "")
    async with database.write() as session:
        await workers.announce(session, "one", ["gpu"], 1, 1)
    assert "no worker serves the queue 'any'" in (await reason() or "")
    async with database.write() as session:
        await workers.announce(session, "two", ["any"], 1, 1)
    assert await reason() is None
