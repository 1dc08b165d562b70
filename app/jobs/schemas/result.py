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
    """The distilled student's value minus this one's."""


class ReportWarningView(View):
    """A reason to doubt the figures, found during training."""

    code: str
    """Name of the warning, for programs."""
    message: str
    """The reason, for people."""


class JobResultView(View):
    """Result of a job: the quality of the student, comparisons, and its files."""

    object: Literal["job.result"] = "job.result"
    job_id: str
    """Id of the job."""
    model_id: str | None
    """The trained model; none if it was deleted."""
    metric: str | None = None
    """Main metric of the task; none if the report has none."""
    higher_is_better: bool | None = None
    """Whether larger values of the metric are better."""
    value: float | None = None
    """Value of the student."""
    teachers: dict[str, float] = {}
    """The same metric of each teacher, by its name."""
    difference: float | None = None
    """The student's value minus that of its best teacher."""
    alone: AloneView | None
    """Null if there is no such job, or this one has no teacher."""
    warnings: list[ReportWarningView]
    """Reasons to doubt the figures, found during training."""
    artifacts: list[ArtifactView]
    """The files, by name."""
