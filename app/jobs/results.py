"""Result of a job: its main metric beside its teachers', and beside a student trained without a teacher."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.errors import WrongState
from app.jobs import repository
from app.jobs.lifecycle import Status
from app.jobs.schemas.history import ArtifactView
from app.jobs.schemas.result import AloneView, JobResultView, ReportWarningView
from app.jobs.tables import JobInput, JobRow
from app.models.tables import ModelRow
from app.recipe.report import summary

COMPARED = 100
"""Newest jobs on the same data that are searched for one without a teacher."""


async def result_of(session: AsyncSession, job: JobRow) -> JobResultView:
    """The result of a job. Raises `WrongState` for one that has none."""
    if job.status != Status.SUCCEEDED:
        raise WrongState("no_result", f"a job that is {job.status} has no result", param="status")
    model = await session.get(ModelRow, job.model_id) if job.model_id else None
    report = (model.report if model else None) or {}
    found: dict[str, Any] = job.result or summary(report) or {}
    return JobResultView(
        **found,
        job_id=job.id,
        model_id=job.model_id if model and model.deleted_at is None else None,
        alone=await _alone(session, job, found) if found else None,
        warnings=[ReportWarningView.model_validate(warning) for warning in report.get("warnings") or []],
        artifacts=[ArtifactView.of(row) for row in await repository.artifacts_of(session, job.id)],
    )


async def _alone(session: AsyncSession, job: JobRow, found: dict[str, Any]) -> AloneView | None:
    """The newest job with the same student and data but no teacher; none if this job has no teacher either."""
    if not _teachers(job.spec):
        return None
    mine = (JobRow.project_id == job.project_id, JobRow.status == Status.SUCCEEDED, JobRow.deleted_at.is_(None))
    on_the_data = select(JobInput.job_id).where(JobInput.reference == job.spec["data"]["train"])
    newest = select(JobRow).where(*mine, JobRow.id.in_(on_the_data)).order_by(JobRow.id.desc()).limit(COMPARED)
    for other in await session.scalars(newest):
        same = all(other.spec[field] == job.spec[field] for field in ("task", "data", "student"))
        figures = other.result or {}
        if same and not _teachers(other.spec) and figures.get("metric") == found["metric"]:
            difference = found["value"] - figures["value"]
            return AloneView(job_id=other.id, name=other.name, value=figures["value"], difference=difference)
    return None


def _teachers(spec: dict[str, Any]) -> bool:
    return bool(spec.get("teacher") or spec.get("teachers"))
