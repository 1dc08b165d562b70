"""All queries of recommendations. Every one has the project as a condition: other projects' jobs teach nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.files.tables import FileRow
from app.jobs.lifecycle import Status
from app.jobs.tables import JobRow
from app.models.tables import ModelRow

MAX_JOBS = 500
"""Newest succeeded jobs that are learned from: the fit then takes a few seconds."""


class PastRow(NamedTuple):
    """A succeeded job with the parts of its report that describe data and networks."""

    job_id: str
    spec: dict[str, Any]
    result: dict[str, Any] | None
    """Its summary (`app.recipe.report.summary`)."""
    network: dict[str, Any] | None
    """The student's architecture."""
    parameters: int | None
    samples: dict[str, int] | None
    classes: int | None
    targets: int | None
    data: dict[str, Any] | None
    """`report.data`; none: by an older version."""
    teacher_parameters: int | None


class StoredTeacher(NamedTuple):
    """A teacher in the service."""

    network: dict[str, Any] | None
    parameters: int | None


async def past_jobs(session: AsyncSession, project_id: str) -> list[PastRow]:
    """The project's newest succeeded jobs that have not been deleted, newest first."""
    mine = (JobRow.project_id == project_id, JobRow.status == Status.SUCCEEDED, JobRow.deleted_at.is_(None))
    report, config = ModelRow.report, ModelRow.config
    statement = (
        select(
            JobRow.id,
            JobRow.spec,
            JobRow.result,
            config["architecture"],
            ModelRow.parameters,
            report["samples"],
            report["classes"],
            report["targets"],
            report["data"],
            report["teacher"],
        )
        .join(ModelRow, ModelRow.job_id == JobRow.id)
        .where(*mine, ModelRow.project_id == project_id)
        .order_by(JobRow.id.desc())
        .limit(MAX_JOBS)
    )
    rows = await session.execute(statement)
    return [PastRow._make((*row[:-1], (row[-1] or {}).get("parameters"))) for row in rows.all()]


async def teachers(session: AsyncSession, project_id: str, ids: Collection[str]) -> Mapping[str, StoredTeacher]:
    """The project's models by id, deleted ones too."""
    wanted = (ModelRow.id.in_(ids), ModelRow.project_id == project_id)
    rows = await session.execute(
        select(ModelRow.id, ModelRow.config["architecture"], ModelRow.parameters).where(*wanted)
    )
    return {id: StoredTeacher(network, parameters or None) for id, network, parameters in rows}


async def digests(session: AsyncSession, project_id: str, ids: Collection[str]) -> Mapping[str, str]:
    """SHA-256 of the project's files by id, deleted ones too: the same data may be uploaded twice."""
    rows = await session.execute(
        select(FileRow.id, FileRow.sha256).where(FileRow.id.in_(ids), FileRow.project_id == project_id)
    )
    return {id: sha256 for id, sha256 in rows}
