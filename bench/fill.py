"""Fills a database with jobs, far faster than they could be posted: one statement for a table, on either database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import CTE, JSON, ColumnElement, String, case, cast, insert, literal, null, select, text

from app.core.clock import now
from app.core.database import Base, Database
from app.jobs.tables import JobRow, PhaseRow
from app.projects.tables import Project
from app.recipe.job import JobSpec

STATUSES = {"succeeded": 90, "failed": 95, "cancelled": 98, "running": 99, "queued": 100}
"""Statuses of every hundred jobs, by the last two digits of their number: those below 90 have succeeded, and so on."""
PHASES = ("staging", "training", "evaluating", "exporting", "publishing")
DAY_SECONDS = 86_400.0
SPEC = JobSpec.model_validate(
    {
        "name": "resnet20 from wrn-16-2",
        "labels": {"dataset": "digits", "team": "vision"},
        "data": {"train": "file_0123456789abcdefghjkmnpqrs", "eval": "file_0123456789abcdefghjkmnpqrt"},
        "teacher": {"model": "model_0123456789abcdefghjkmnpqrs"},
        "student": {"architecture": "cifar-resnet"},
        "recipe": {"losses": [{"kind": "cross-entropy"}, {"kind": "nkd"}], "optimizer": {"kind": "adamp"}},
        "seed": 1,
    }
)
_PREFIX, _FIRST = "job_" + "0" * 18, 10_000_000


def job_id(number: int) -> str:
    """Id of the job with this number; later numbers sort after earlier ones."""
    return f"{_PREFIX}{_FIRST + number}"


def ids(jobs: int, status: str | None = None) -> list[str]:
    """Ids of the first `jobs` jobs, oldest first; only those with `status`, if given."""
    bounds = {name: range(below, above) for name, below, above in _spans()}
    wanted = range(100) if status is None else bounds[status]
    return [job_id(number) for number in range(jobs) if number % 100 in wanted]


def _spans() -> Iterator[tuple[str, int, int]]:
    below = 0
    for name, above in STATUSES.items():
        yield name, below, above
        below = above


async def fill(url: str, jobs: int) -> str:
    """Add `jobs` jobs to the only project, with the phases of those that ran; returns the project's id."""
    database = Database(url)
    try:
        async with database.write() as session:
            project = (await session.scalars(select(Project.id))).one()
            numbers = _numbers(jobs)
            for table, rows in _rows(project, numbers):
                columns = [value.label(name) for name, value in rows.items()]
                statement = select(*columns).select_from(numbers)
                await session.execute(insert(table).from_select(list(rows), statement))
            if not database.is_sqlite:  # PostgreSQL does so by itself within a minute; SQLite never does
                await session.execute(text("ANALYZE"))
    finally:
        await database.close()
    return project


def _numbers(count: int) -> CTE:
    numbers = select(literal(0).label("n")).cte("numbers", recursive=True)
    return numbers.union_all(select(numbers.c.n + 1).where(numbers.c.n < count - 1))


def _rows(project: str, numbers: CTE) -> Iterator[tuple[type[Base], dict[str, ColumnElement[Any]]]]:
    id = literal(_PREFIX).concat(cast(numbers.c.n + _FIRST, String))
    yield JobRow, _job(id, project, numbers)
    for minutes, phase in enumerate(PHASES):
        began = now() - DAY_SECONDS + 60 * minutes
        times = {"started_at": began, "ended_at": began + 60}
        yield PhaseRow, {"job_id": id, "attempt": literal(1), "phase": literal(phase), **times}


def _job(id: ColumnElement[str], project: str, numbers: CTE) -> dict[str, ColumnElement[Any]]:
    status = case(*((numbers.c.n % 100 < above, literal(name)) for name, above in STATUSES.items()))
    final, running = numbers.c.n % 100 < STATUSES["cancelled"], status == "running"
    failed = {"fault": "user", "code": "nan_loss", "message": "the loss is not finite", "param": None, "step": 17}
    return {
        "id": id,
        "project_id": literal(project),
        "name": literal(SPEC.name),
        "status": status,
        "status_at": now(),
        "deadline_at": case((final, null()), else_=now() + DAY_SECONDS),
        "spec": literal(SPEC.model_dump(mode="json"), JSON),
        "priority": numbers.c.n % 3 * 25,
        "queue": literal("gpu"),
        "created_at": now() - 2 * DAY_SECONDS,
        "started_at": now() - DAY_SECONDS,
        "finished_at": case((final, now()), else_=null()),
        "attempt": literal(1),
        "max_attempts": literal(3),
        "lease_owner": case((running, literal("bench")), else_=null()),
        "lease_expires_at": case((running, now() + DAY_SECONDS), else_=null()),
        "next_run_at": now(),
        "dispatched_at": now() + DAY_SECONDS,
        "phase": literal("training"),
        "step": numbers.c.n,
        "total_steps": literal(1_000_000),
        "epoch": literal(3.5),
        "samples_per_second": literal(12_345.6),
        "seconds_left": literal(60.0),
        "progress_at": now(),
        "error": case((status == "failed", literal(failed, JSON)), else_=literal(None, JSON(none_as_null=True))),
        "last_seq": literal(0),
    }
