"""Shapes of the jobs resource's requests and answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator

from app.core.clock import Time
from app.core.errors import FieldError
from app.jobs.lifecycle import FINAL, Status
from app.jobs.tables import Artifact, Checkpoint, Event, Job, Phase
from app.recipe.base import Spec
from app.recipe.data import AnyData
from app.recipe.job import Evaluation, Labels, Name, Recipe, Resources
from app.recipe.students import Student
from app.recipe.teachers import Teacher, Weighting


class PhaseView(BaseModel):
    """A phase of an attempt."""

    attempt: int
    phase: str
    started_at: Time
    ended_at: Time | None


class ProgressView(BaseModel):
    """Where training stands."""

    step: int
    total_steps: int | None
    epoch: float
    samples_per_second: float | None
    seconds_left: float | None
    progress_at: Time | None


class JobError(BaseModel):
    """Why a job failed, and by whose fault."""

    fault: Literal["user", "system", "capacity", "deadline"]
    code: str
    message: str
    param: str | None = None
    step: int | None = None


class WarningView(BaseModel):
    """Something remarkable about a job that does not keep it from being taken in."""

    code: str
    param: str
    """Path of the field that it is about."""
    message: str


class ResultView(BaseModel):
    """What a job came to, by the main metric of its task, measured on its exported weights."""

    metric: str
    higher_is_better: bool
    value: float
    teachers: dict[str, float]
    """The same metric of each teacher, by its name."""
    difference: float | None
    """The student's value less that of its best teacher; none without a teacher."""


class JobView(BaseModel):
    """A job as a client sees it."""

    id: str
    object: Literal["job"] = "job"
    name: str | None
    status: Status
    is_final: bool
    phase: str | None
    phases: list[PhaseView]
    progress: ProgressView
    queue_position: int | None
    reason: str | None
    """Why a queued job waits, where it is not for the jobs ahead of it: that no worker would take it."""
    warnings: list[WarningView]
    """What was remarked when it was taken in."""
    result: ResultView | None
    """What it came to, once it has succeeded."""
    error: JobError | None
    model_id: str | None
    checkpoint_id: str | None
    cloned_from: str | None
    attempt: int
    max_attempts: int
    priority: int
    queue: str
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    status_at: Time
    deadline_at: Time | None
    spec: dict[str, Any]
    """The job as resolved: all defaults filled, the seed drawn (see the request's schema)."""

    @classmethod
    def of(cls, job: Job, phases: list[Phase], queue_position: int | None, reason: str | None = None) -> JobView:
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


class JobPatch(Spec):
    """What may be changed while a job is queued."""

    priority: int = Field(ge=0, le=100)


class CloneOverrides(Spec):
    """Fields of the clone that differ from the original; a field is replaced as a whole."""

    name: Name | None = None
    labels: Labels | None = None
    data: AnyData | None = None
    teacher: Teacher | None = None
    teachers: list[Teacher] | None = Field(None, max_length=8)
    teacher_weighting: Weighting | None = None
    student: Student | None = None
    recipe: Recipe | None = None
    evaluation: Evaluation | None = None
    resources: Resources | None = None
    priority: int | None = Field(None, ge=0, le=100)
    seed: int | None = Field(None, ge=0, le=2**63 - 1)
    """None: a new one is drawn; left out: the original's, so that the clone repeats it."""

    @field_validator(
        "labels",
        "data",
        "teachers",
        "teacher_weighting",
        "student",
        "recipe",
        "evaluation",
        "resources",
        "priority",
        mode="before",
    )
    @classmethod
    def _not_null(cls, value: object) -> object:
        if value is None:
            raise ValueError("can't be null; leave it out to keep the original's")
        return value


class DeviceEstimate(BaseModel):
    """What a job takes on one kind of device."""

    device: Literal["cpu", "gpu"]
    memory_bytes: int
    """Main memory at the peak, with torch itself: on a CPU within a quarter of what was measured, on a GPU untried."""
    gpu_memory_bytes: int | None
    """Memory of the GPU at the peak, its context assumed; none on a CPU."""
    training_seconds: float | None
    """None where only a worker can count the samples."""
    basis: str
    """Where the rate comes from: measured on recent jobs on such a device, or assumed."""


class EstimateView(BaseModel):
    """What the job will take, as far as can be told before it runs, on the device that its queue has."""

    memory_bytes: int
    """Main memory of the trainer at its peak, with torch itself."""
    seconds: float | None
    """Training, evaluating and exporting together; none where only a worker can count the samples."""
    training_seconds: float | None
    evaluating_seconds: float | None
    exporting_seconds: float
    """Writing, reading and measuring the files: as long as in the newest jobs, or assumed."""
    basis: str
    """Where the rate of training comes from: measured on recent jobs, or assumed."""
    devices: list[DeviceEstimate]
    """The same by device; a queue that serves both may take either."""


class DefaultView(BaseModel):
    """A value that was chosen for a field of the recipe that the document leaves out."""

    param: str
    """Path of the field."""
    value: Any
    reason: str
    """The kind of student that the value is for, and its source."""


class ValidationView(BaseModel):
    """What would become of a job, without making it."""

    object: Literal["job.validation"] = "job.validation"
    valid: bool
    errors: list[FieldError]
    spec: dict[str, Any] | None = None
    """The job as it would be stored; the seed stays open when none was given."""
    defaults: list[DefaultView] = []
    """Values of `recipe` that depend on the student, where the document gives none."""
    warnings: list[WarningView] = []
    """What is remarkable about the job, though nothing is wrong."""
    steps_per_epoch: int | None = None
    total_steps: int | None = None
    parameters: int | None = None
    estimate: EstimateView | None = None


class EventView(BaseModel):
    """Something that happened to a job."""

    object: Literal["job.event"] = "job.event"
    seq: int
    type: str
    level: str
    message: str
    data: dict[str, Any]
    created_at: Time

    @classmethod
    def of(cls, event: Event) -> EventView:
        return cls.model_validate(event, from_attributes=True)


class EventPage(BaseModel):
    """Events in order; go on with `after` = the last `seq`."""

    object: Literal["list"] = "list"
    data: list[EventView]
    has_more: bool


class SeriesView(BaseModel):
    """One metric over the steps of training."""

    name: str
    steps: list[int]
    values: list[float]


class MetricsView(BaseModel):
    """Series of a job, thinned to the number of points asked for."""

    object: Literal["job.metrics"] = "job.metrics"
    data: list[SeriesView]


class CheckpointView(BaseModel):
    """A published state of training."""

    object: Literal["job.checkpoint"] = "job.checkpoint"
    id: str
    attempt: int
    step: int
    size: int
    created_at: Time

    @classmethod
    def of(cls, row: Checkpoint) -> CheckpointView:
        size = sum(file["size"] for file in row.files)
        return cls(id=row.id, attempt=row.attempt, step=row.step, size=size, created_at=row.created_at)


class CheckpointList(BaseModel):
    object: Literal["list"] = "list"
    data: list[CheckpointView]


class ArtifactView(BaseModel):
    """A published file of a job."""

    object: Literal["job.artifact"] = "job.artifact"
    id: str
    name: str
    media_type: str
    size: int
    sha256: str
    attempt: int
    created_at: Time

    @classmethod
    def of(cls, row: Artifact) -> ArtifactView:
        return cls.model_validate(row, from_attributes=True)


class ArtifactList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ArtifactView]


class AloneView(BaseModel):
    """The newest job of the project that trained the same student on the same data without a teacher."""

    job_id: str
    name: str | None
    value: float
    difference: float
    """The distilled student's value less this one's."""


class ReportWarning(BaseModel):
    """Something that the training found out and that puts its figures in doubt."""

    code: str
    message: str


class JobResultView(BaseModel):
    """What people wait for: how good the student is, beside whom, and its files."""

    object: Literal["job.result"] = "job.result"
    job_id: str
    model_id: str | None
    """The model that it made; none where that was deleted."""
    metric: str | None = None
    """Main metric of the task; none where the report has none."""
    higher_is_better: bool | None = None
    value: float | None = None
    teachers: dict[str, float] = {}
    """The same metric of each teacher, by its name."""
    difference: float | None = None
    """The student's value less that of its best teacher."""
    alone: AloneView | None
    """Null where there is no such job, or this one has no teacher."""
    warnings: list[ReportWarning]
    artifacts: list[ArtifactView]
