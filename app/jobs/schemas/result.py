"""The result of a job that has succeeded."""

from __future__ import annotations

from typing import Literal

from app.core.views import View
from app.jobs.schemas.history import ArtifactView


class AloneView(View):
    """The newest job of the project that trained the same student on the same data without a teacher."""

    job_id: str
    """Id of that job."""
    name: str | None
    """Its name."""
    value: float
    """The main metric of its student."""
    difference: float
    """The distilled student's value less this one's."""


class ReportWarningView(View):
    """Something that the training found out and that puts its figures in doubt."""

    code: str
    """Name of the warning, for programs."""
    message: str
    """What puts the figures in doubt, for people."""


class JobResultView(View):
    """What people wait for: how good the student is, beside whom, and its files."""

    object: Literal["job.result"] = "job.result"
    job_id: str
    """Id of the job."""
    model_id: str | None
    """The model that it made; none where that was deleted."""
    metric: str | None = None
    """Main metric of the task; none where the report has none."""
    higher_is_better: bool | None = None
    """Whether larger values of the metric are better."""
    value: float | None = None
    """The student's."""
    teachers: dict[str, float] = {}
    """The same metric of each teacher, by its name."""
    difference: float | None = None
    """The student's value less that of its best teacher."""
    alone: AloneView | None
    """Null where there is no such job, or this one has no teacher."""
    warnings: list[ReportWarningView]
    """What the training found out and puts the figures in doubt."""
    artifacts: list[ArtifactView]
    """The files, by name."""
