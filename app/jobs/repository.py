"""All queries of the jobs resource. Every query for a client has the project as a condition."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, bindparam, case, delete, func, literal, or_, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.core.usage import finds_users
from app.jobs.lifecycle import FINAL, Status
from app.jobs.tables import (
    ArtifactRow,
    AttemptRow,
    CheckpointRow,
    EventRow,
    IdempotencyKey,
    JobInput,
    JobLabel,
    JobRow,
    Metric,
    PhaseRow,
)
from app.models.tables import ModelRow

QUEUE_POSITION_CAP = 1000
"""Largest queue position that is counted: the cost of counting grows with the length of the queue."""


@dataclass(frozen=True)
class JobFilter:
    """Conditions of a list; all of them must match."""

    statuses: Sequence[Status] = ()
    name: str | None = None
    labels: Sequence[tuple[str, str]] = ()
    created_after: float | None = None
    created_before: float | None = None


def listing(project_id: str, wanted: JobFilter) -> Select[JobRow]:
    """The project's jobs that match the filter, unordered and unlimited."""
    statement = select(JobRow).where(JobRow.project_id == project_id, JobRow.deleted_at.is_(None))
    if wanted.statuses:
        statement = statement.where(JobRow.status.in_(wanted.statuses))
    if wanted.name is not None:
        statement = statement.where(JobRow.name == wanted.name)
    if wanted.created_after is not None:
        statement = statement.where(JobRow.created_at > wanted.created_after)
    if wanted.created_before is not None:
        statement = statement.where(JobRow.created_at < wanted.created_before)
    for key, value in wanted.labels:
        carrying = select(JobLabel.job_id).where(JobLabel.key == key, JobLabel.value == value)
        statement = statement.where(JobRow.id.in_(carrying))
    return statement


async def by_ids(session: AsyncSession, ids: Sequence[str]) -> dict[str, JobRow]:
    """Jobs of any project by id; the caller checks their project."""
    rows = await session.scalars(select(JobRow).where(JobRow.id.in_(ids), JobRow.deleted_at.is_(None)))
    return {job.id: job for job in rows}


async def phases_of(session: AsyncSession, ids: Sequence[str]) -> dict[str, list[PhaseRow]]:
    """Phases of the given jobs, oldest first."""
    found: dict[str, list[PhaseRow]] = {id: [] for id in ids}
    if ids:
        for phase in await session.scalars(_PHASES, {"ids": list(ids)}):
            found[phase.job_id].append(phase)
    return found


# Statements that every request needs are written once: to write one anew takes longer than SQLite takes to run it.
_PHASES = select(PhaseRow).where(PhaseRow.job_id.in_(bindparam("ids", expanding=True))).order_by(PhaseRow.started_at)


def _queue_position(cap: int = QUEUE_POSITION_CAP) -> ColumnElement[int | None]:
    """Number of jobs of its queue before a job; none if it is not queued, or too far back to count."""
    other = aliased(JobRow)
    queued = select(literal(1)).where(other.status == Status.QUEUED, other.queue == JobRow.queue).correlate(JobRow)
    # Two ranges of the index by which jobs are claimed; joined by OR they would be one scan of all queued jobs.
    higher = queued.where(other.priority > JobRow.priority)
    older = queued.where(other.priority == JobRow.priority, other.id < JobRow.id)
    before = union_all(higher, older).limit(cap).subquery()
    count = select(func.nullif(func.count(), cap)).select_from(before).scalar_subquery()
    return case((JobRow.status == Status.QUEUED, count))


_QUEUE_POSITION = _queue_position()


def _positions(cap: int = QUEUE_POSITION_CAP) -> Select[str, int | None]:
    """Ids and queue positions of those of the jobs `ids` that are queued."""
    ids = JobRow.id.in_(bindparam("ids", expanding=True))
    return select(JobRow.id, _queue_position(cap)).where(ids, JobRow.status == Status.QUEUED)


_POSITIONS = _positions()


async def queue_positions(session: AsyncSession, ids: Collection[str]) -> dict[str, int | None]:
    """Number of jobs before each of these, for those that are queued and not too far back to count."""
    if not ids:
        return {}
    rows = await session.execute(_POSITIONS, {"ids": list(ids)})
    return {id: position for id, position in rows}


class State(NamedTuple):
    """The changing part of a job: while it is the same, so is the view of the job."""

    row: tuple[Any, ...]
    """Columns of the job, without constant ones and those that change only with others; phases change `last_seq`."""
    queue_position: int | None

    @property
    def is_queued(self) -> bool:
        """Whether the job waits for a worker."""
        return bool(self.row[_STATUS] == Status.QUEUED)

    @classmethod
    def of(cls, job: JobRow, queue_position: int | None) -> State:
        return cls(tuple(getattr(job, column.key) for column in _CHANGING), queue_position)


_CHANGING = [column for column in JobRow.__table__.columns if column.key not in {"spec", "error", "result", "warnings"}]
_STATUS = [column.key for column in _CHANGING].index("status")
_STATES = select(JobRow.id, _QUEUE_POSITION, *_CHANGING).where(
    JobRow.id.in_(bindparam("ids", expanding=True)), JobRow.deleted_at.is_(None)
)


async def states(session: AsyncSession, ids: Collection[str]) -> dict[str, State]:
    """States of jobs by id, cheaper to read than the jobs."""
    rows = await session.execute(_STATES, {"ids": list(ids)})
    return {id: State(tuple(row), position) for id, position, *row in rows}


@finds_users("file", "model")
async def jobs_using(session: AsyncSession, project_id: str, reference: str) -> list[str]:
    """Ids of jobs that name this file or model and are not final, at most ten."""
    statement = (
        select(JobRow.id)
        .join(JobInput, JobInput.job_id == JobRow.id)
        .where(JobInput.reference == reference, JobRow.project_id == project_id, JobRow.status.not_in(FINAL))
        .limit(10)
    )
    return list(await session.scalars(statement))


class EventState(NamedTuple):
    """Number of a job's last event, and whether there will be more."""

    last_seq: int
    over: bool


async def event_states(session: AsyncSession, ids: Collection[str]) -> dict[str, EventState]:
    """States of the events of jobs by id, without deleted jobs."""
    rows = await session.execute(select(JobRow.id, JobRow.last_seq, JobRow.status.in_(FINAL)).where(JobRow.id.in_(ids)))
    return {id: EventState(last_seq, over) for id, last_seq, over in rows}


async def events_after(session: AsyncSession, job_id: str, seq: int, limit: int) -> list[EventRow]:
    """Events with a number above `seq`, in order."""
    statement = (
        select(EventRow).where(EventRow.job_id == job_id, EventRow.seq > seq).order_by(EventRow.seq).limit(limit)
    )
    return list(await session.scalars(statement))


async def checkpoints_of(session: AsyncSession, job_id: str) -> list[CheckpointRow]:
    """Checkpoints whose objects are kept, newest first."""
    alive = (CheckpointRow.job_id == job_id, CheckpointRow.deleted_at.is_(None))
    return list(await session.scalars(select(CheckpointRow).where(*alive).order_by(CheckpointRow.id.desc())))


async def artifacts_of(session: AsyncSession, job_id: str) -> list[ArtifactRow]:
    """Published files of a job, by name."""
    return list(
        await session.scalars(select(ArtifactRow).where(ArtifactRow.job_id == job_id).order_by(ArtifactRow.name))
    )


async def artifact(session: AsyncSession, job_id: str, name: str) -> ArtifactRow | None:
    return await session.scalar(select(ArtifactRow).where(ArtifactRow.job_id == job_id, ArtifactRow.name == name))


async def metric_names(session: AsyncSession, job_id: str) -> list[str]:
    """Names of all series of a job."""
    statement = select(Metric.name).where(Metric.job_id == job_id).distinct().order_by(Metric.name)
    return list(await session.scalars(statement))


async def published(session: AsyncSession, job_id: str) -> Any:
    """Condition on `Metric` for the steps that count.

    An attempt that resumed from a checkpoint repeats the steps after it; the measurements of earlier attempts there are
    superseded, so that a series has one value per step.
    """
    statement = (
        select(AttemptRow.number, AttemptRow.start_step)
        .where(AttemptRow.job_id == job_id)
        .order_by(AttemptRow.number.desc())
    )
    conditions, limit = [], None
    for number, start_step in (await session.execute(statement)).all():
        mine = Metric.attempt == number
        conditions.append(mine if limit is None else and_(mine, Metric.step <= limit))
        limit = start_step if limit is None else min(limit, start_step)
    return and_(Metric.job_id == job_id, or_(False, *conditions))


async def series(session: AsyncSession, job_id: str, name: str, points: int) -> list[tuple[int, float]]:
    """Values of one metric as `(step, value)`, down-sampled to about `points`, with the extremes of every interval."""
    wanted = and_(await published(session, job_id), Metric.name == name)
    summary = select(func.count(), func.min(Metric.step), func.max(Metric.step)).where(wanted)
    count, first, last = (await session.execute(summary)).one()
    if count <= points:
        rows = await session.execute(select(Metric.step, Metric.value).where(wanted).order_by(Metric.step))
        return [(step, value) for step, value in rows]
    buckets = max(1, points // 2)
    bucket = ((Metric.step - first) * buckets // (last - first + 1)).label("bucket")
    ranked = select(
        Metric.step,
        Metric.value,
        func.row_number().over(partition_by=bucket, order_by=(Metric.value, Metric.step)).label("lowest"),
        func.row_number().over(partition_by=bucket, order_by=(Metric.value.desc(), Metric.step)).label("highest"),
    ).where(wanted)
    extremes = ranked.subquery()
    selected = or_(extremes.c.lowest == 1, extremes.c.highest == 1)
    rows = await session.execute(select(extremes.c.step, extremes.c.value).where(selected).order_by(extremes.c.step))
    return [(step, value) for step, value in rows]


async def remove_history(session: AsyncSession, job_id: str) -> list[str]:
    """Delete all rows of a job but its own; returns the keys of the objects that are no longer needed."""
    checkpoints = await session.scalars(
        select(CheckpointRow).where(CheckpointRow.job_id == job_id, CheckpointRow.deleted_at.is_(None))
    )
    keys = [file["key"] for checkpoint in checkpoints for file in checkpoint.files]
    files = await session.scalar(select(ModelRow.files).where(ModelRow.job_id == job_id, ModelRow.deleted_at.is_(None)))
    needed = {file["key"] for file in files or ()}
    artifacts = await session.scalars(select(ArtifactRow.key).where(ArtifactRow.job_id == job_id))
    keys += [key for key in artifacts if key not in needed]
    for table in (
        Metric,
        EventRow,
        PhaseRow,
        AttemptRow,
        JobLabel,
        JobInput,
        CheckpointRow,
        ArtifactRow,
        IdempotencyKey,
    ):
        await session.execute(delete(table).where(table.job_id == job_id))
    return keys
