"""Both databases give the same past: the project's own succeeded jobs, with parts of their reports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.core.database import Database
from app.jobs import publishing
from app.recommendations import repository
from app.recommendations.past import learnable
from tests.app.jobs.builders import CONFIG, PATIENT, PROJECT, add_inputs, running, submit

OTHER = "proj_other"
REPORT: dict[str, Any] = {
    "samples": {"train": 90, "eval": 10},
    "classes": 10,
    "targets": None,
    "student": {"accuracy": 0.6},
    "teacher": {"accuracy": 0.8, "parameters": 1234},
    "teachers": {"teacher": {"accuracy": 0.8}},
    "data": {"embedding": {"values": [0.5, -1.0]}},
}
DISTILLED = {
    "teacher": {"model": f"model_{PROJECT}"},
    "recipe": {"losses": [{"kind": "cross-entropy"}, {"kind": "kd"}]},
}


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """Two projects with inputs."""
    database = Database(database_url, limits=PATIENT)
    async with database.write() as session:
        await add_inputs(session, PROJECT)
        await add_inputs(session, OTHER)
    yield database
    await database.close()


async def succeed(database: Database, report: dict[str, Any], **fields: Any) -> str:
    lease = await running(database, **fields)
    async with database.write() as session:
        await publishing.succeed(session, lease, [], CONFIG, 300, report)
    return lease.job_id


async def test_succeeded_jobs_are_read_with_what_their_reports_say_of_data_and_networks(database: Database) -> None:
    old = await succeed(database, {"student": {"accuracy": 0.5}})
    new = await succeed(database, REPORT, **DISTILLED)
    await submit(database)
    async with database.read() as session:
        rows = await repository.past_jobs(session, PROJECT)
        assert await repository.past_jobs(session, OTHER) == []
        teachers = await repository.teachers(session, PROJECT, [f"model_{PROJECT}", f"model_{OTHER}"])
        digests = await repository.digests(session, PROJECT, [f"file_{PROJECT}", f"file_{OTHER}"])
    assert [row.job_id for row in rows] == [new, old]
    assert (rows[0].samples, rows[0].classes, rows[0].targets) == (REPORT["samples"], 10, None)
    assert (rows[0].data, rows[0].parameters, rows[0].teacher_parameters) == (REPORT["data"], 300, 1234)
    assert (rows[1].samples, rows[1].data, rows[1].teacher_parameters) == (None, None, None)
    architecture = CONFIG.architecture.model_dump(mode="json")
    assert rows[0].network == architecture
    assert dict(teachers) == {f"model_{PROJECT}": repository.StoredTeacher(architecture, 650)}
    assert dict(digests) == {f"file_{PROJECT}": "0" * 64}

    [found] = learnable(rows, teachers, digests)  # the older one has no teacher
    assert (found.job_id, found.ratio) == (new, pytest.approx(0.75))
    assert found.distillation.data.embedding == (0.5, -1.0)
    assert (found.distillation.teacher.parameters, found.distillation.teacher.score) == (650, 0.8)
