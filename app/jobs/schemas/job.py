"""Views of a job."""

from __future__ import annotations

from typing import Any, Literal

from app.core.clock import Time
from app.core.views import View
from app.jobs.lifecycle import FINAL, Status
from app.jobs.tables import JobRow, PhaseRow


class PhaseView(View):
    """A phase of an attempt."""

    attempt: int
    """Number of the attempt, from 1."""
    phase: str
    """Work of the worker: `staging`, `training`, `evaluating`, `exporting` or `publishing`."""
    started_at: Time
    """When it began."""
    ended_at: Time | None
    """When it ended; null while it is in progress."""


class ProgressView(View):
    """Progress of training."""

    step: int
    """Optimizer steps done."""
    total_steps: int | None
    """Optimizer steps of the whole training; null until the data is read."""
    epoch: float
    """Passes over the training set done, with fraction."""
    samples_per_second: float | None
    """Recent training throughput, in samples per second."""
    seconds_left: float | None
    """Estimated seconds until training ends."""
    progress_at: Time | None
    """When the worker last reported progress."""


class JobErrorView(View):
    """Why a job failed."""

    fault: Literal["user", "system", "capacity", "deadline"]
    """Cause: the request or its data, the service, the resources, or the time limit."""
    code: str
    """Name of the error, for programs."""
    message: str
    """Description of the error, for people."""
    param: str | None = None
    """The field of the job that caused it; null if none did."""
    step: int | None = None
    """Optimizer step at which it happened; null before and after training."""


class WarningView(View):
    """A warning about a job, which is accepted nevertheless."""

    code: str
    """Name of the warning, for programs."""
    param: str
    """Path of the field concerned."""
    message: str
    """The warning, for people."""


class ResultView(View):
    """Result of a job by the main metric of its task, measured on its exported weights."""

    metric: str
    """Main metric of the task."""
    higher_is_better: bool
    """Whether larger values of the metric are better."""
    value: float
    """Value of the student."""
    teachers: dict[str, float]
    """The same metric of each teacher, by its name."""
    difference: float | None
    """The student's value minus that of its best teacher; none without a teacher."""


class JobView(View):
    """A job."""

    id: str
    """Id of the job."""
    object: Literal["job"] = "job"
    name: str | None
    """Name of the job."""
    status: Status
    """State of the job."""
    is_final: bool
    """Whether the state is final."""
    phase: str | None
    """Current phase; null unless a worker has the job."""
    phases: list[PhaseView]
    """All phases so far, oldest first."""
    progress: ProgressView
    """Progress of training."""
    queue_position: int | None
    """Jobs of its queue that run before it; null if it is not queued, or has a thousand or more before it."""
    reason: str | None
    """Why no worker would take a queued job; null if one would."""
    warnings: list[WarningView]
    """Warnings from its validation."""
    result: ResultView | None
    """Result, once it has succeeded."""
    error: JobErrorView | None
    """Why it failed; null unless it did."""
    model_id: str | None
    """The student, once the job has succeeded."""
    checkpoint_id: str | None
    """Its newest checkpoint."""
    cloned_from: str | None
    """The job that it is a clone of."""
    attempt: int
    """Number of claims so far, also after pauses, hand-backs and interruptions."""
    failures: int
    """Attempts that failed; at `max_attempts` the job fails."""
    interruptions: int
    """Attempts ended by an external cause, such as a lost machine; they have no limit."""
    max_attempts: int
    """Attempts that may fail."""
    priority: int
    """Higher runs first within a queue."""
    queue: str
    """Kind of machine that it needs."""
    created_at: Time
    """When it was submitted."""
    started_at: Time | None
    """When a worker first started it."""
    finished_at: Time | None
    """When it became final."""
    status_at: Time
    """When its state last changed."""
    deadline_at: Time | None
    """When the service will end its current state at the latest; null in a final state."""
    spec: dict[str, Any]
    """The resolved job: all defaults filled, the seed drawn (see the request's schema)."""

    @classmethod
    def of(cls, job: JobRow, phases: list[PhaseRow], queue_position: int | None, reason: str | None = None) -> JobView:
        own = {name: getattr(job, name) for name in _OF_THE_ROW}
        return cls(
            **own,
            reason=reason,
            warnings=[WarningView.model_validate(warning) for warning in job.warnings or []],
            is_final=job.status in FINAL,
            phases=[PhaseView.model_validate(phase, from_attributes=True) for phase in phases],
            progress=ProgressView.model_validate(job, from_attributes=True),
            queue_position=queue_position,
        )


_MADE = {"object", "is_final", "phases", "progress", "queue_position", "reason", "warnings"}
_OF_THE_ROW = tuple(name for name in JobView.model_fields if name not in _MADE)
