"""Shapes of the jobs resource's requests and answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from app.core.clock import Time
from app.core.errors import FieldError
from app.core.views import View
from app.jobs.lifecycle import FINAL, Status
from app.jobs.tables import ArtifactRow, CheckpointRow, EventRow, JobRow, PhaseRow
from app.recipe.base import Spec
from app.recipe.data.sources import AnyData
from app.recipe.job import EvaluationSpec, Labels, Name, Recipe, Resources
from app.recipe.students.architectures import Student
from app.recipe.teachers.teacher import Teacher, Weighting


class PhaseView(View):
    """A phase of an attempt."""

    attempt: int
    """Number of the attempt, from 1."""
    phase: str
    """What the worker does: `staging`, `training`, `evaluating`, `exporting` or `publishing`."""
    started_at: Time
    """When it began."""
    ended_at: Time | None
    """When it ended; null while it lasts."""


class ProgressView(View):
    """Where training stands."""

    step: int
    """Optimizer steps done."""
    total_steps: int | None
    """Optimizer steps of the whole training; null until the data was read."""
    epoch: float
    """Passes over the training set done, with fraction."""
    samples_per_second: float | None
    """Samples trained on in a second, lately."""
    seconds_left: float | None
    """Estimated seconds until training ends."""
    progress_at: Time | None
    """When the worker last told its progress."""


class JobErrorView(View):
    """Why a job failed, and by whose fault."""

    fault: Literal["user", "system", "capacity", "deadline"]
    """Whose fault it is: the request or its data, the service, the resources, or the time limit."""
    code: str
    """Name of the error, for programs."""
    message: str
    """What went wrong, for people."""
    param: str | None = None
    """The field of the job to blame; null where none is."""
    step: int | None = None
    """Optimizer step at which it happened; null before and after training."""


class WarningView(View):
    """Something remarkable about a job that does not keep it from being taken in."""

    code: str
    """Name of the warning, for programs."""
    param: str
    """Path of the field that it is about."""
    message: str
    """What is remarkable, for people."""


class ResultView(View):
    """What a job came to, by the main metric of its task, measured on its exported weights."""

    metric: str
    """Main metric of the task."""
    higher_is_better: bool
    """Whether larger values of the metric are better."""
    value: float
    """The student's."""
    teachers: dict[str, float]
    """The same metric of each teacher, by its name."""
    difference: float | None
    """The student's value less that of its best teacher; none without a teacher."""


class JobView(View):
    """A job as a client sees it."""

    id: str
    """Id of the job."""
    object: Literal["job"] = "job"
    name: str | None
    """Name of the job."""
    status: Status
    """State of the job."""
    is_final: bool
    """Whether nothing more will happen to it."""
    phase: str | None
    """What its worker does at present; null while none has it."""
    phases: list[PhaseView]
    """All phases so far, oldest first."""
    progress: ProgressView
    """Where training stands."""
    queue_position: int | None
    """Jobs of its queue that run before it; null when it is not queued, or has a thousand or more before it."""
    reason: str | None
    """Why a queued job waits, where it is not for the jobs ahead of it: that no worker would take it."""
    warnings: list[WarningView]
    """What was remarked when it was taken in."""
    result: ResultView | None
    """What it came to, once it has succeeded."""
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
    """Attempts that something outside of the job ended, such as a lost machine; they count against nothing."""
    max_attempts: int
    """Attempts that may fail."""
    priority: int
    """Higher runs first within a queue."""
    queue: str
    """Kind of machine that it waits for."""
    created_at: Time
    """When it was submitted."""
    started_at: Time | None
    """When a worker first began with it."""
    finished_at: Time | None
    """When it became final."""
    status_at: Time
    """When its state last changed."""
    deadline_at: Time | None
    """When the service will end its present state, if nothing else does; null in a final state."""
    spec: dict[str, Any]
    """The job as resolved: all defaults filled, the seed drawn (see the request's schema)."""

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


class JobPatch(Spec):
    """What may be changed while a job is queued."""

    priority: int = Field(ge=0, le=100)
    """Higher runs first within a queue."""


def _may_not_be_null(schema: dict[str, Any]) -> None:
    """None stands for what was left out; a document may not say null."""
    for name in NEVER_NULL:
        field = schema["properties"][name]
        [option] = [option for option in field.pop("anyOf") if option.get("type") != "null"]
        del field["default"]
        schema["properties"][name] = {**option, **field}


NEVER_NULL = (
    "labels",
    "data",
    "teachers",
    "teacher_weighting",
    "student",
    "recipe",
    "evaluation",
    "resources",
    "priority",
)


class CloneOverrides(Spec):
    """Fields of the clone that differ from the original; a field is replaced as a whole."""

    model_config = ConfigDict(json_schema_extra=_may_not_be_null)

    name: Name | None = None
    """Name of the clone; null: none."""
    labels: Labels | None = None
    """Labels of the clone."""
    data: AnyData | None = None
    """What is trained and evaluated on."""
    teacher: Teacher | None = None
    """The model to learn from; null: none."""
    teachers: list[Teacher] | None = Field(None, max_length=8)
    """Several models to learn from."""
    teacher_weighting: Weighting | None = None
    """How several teachers share a loss."""
    student: Student | None = None
    """The network that learns."""
    recipe: Recipe | None = None
    """How the student is trained."""
    evaluation: EvaluationSpec | None = None
    """How the student is judged."""
    resources: Resources | None = None
    """Where the clone may run, and how long."""
    priority: int | None = Field(None, ge=0, le=100)
    """Higher runs first within a queue."""
    seed: int | None = Field(None, ge=0, le=2**63 - 1)
    """None: a new one is drawn; left out: the original's, so that the clone repeats it."""

    @field_validator(*NEVER_NULL, mode="before")
    @classmethod
    def _not_null(cls, value: object) -> object:
        if value is None:
            raise ValueError("can't be null; leave it out to keep the original's")
        return value


class DeviceEstimateView(View):
    """What a job takes on one kind of device."""

    device: Literal["cpu", "gpu"]
    """Kind of device."""
    memory_bytes: int
    """Main memory at the peak, with torch itself: on a CPU within a quarter of what was measured, on a GPU untried."""
    gpu_memory_bytes: int | None
    """Memory of the GPU at the peak, its context assumed; none on a CPU."""
    training_seconds: float | None
    """Time that training takes, in seconds; none where only a worker can count the samples."""
    basis: str
    """Where the rate comes from: measured on recent jobs on such a device, or assumed."""


class EstimateView(View):
    """What the job will take, as far as can be told before it runs, on the device that its queue has."""

    memory_bytes: int
    """Main memory of the trainer at its peak, with torch itself."""
    seconds: float | None
    """Training, evaluating and exporting together; none where only a worker can count the samples."""
    training_seconds: float | None
    """Training alone, in seconds."""
    evaluating_seconds: float | None
    """Measuring the student between the epochs, in seconds."""
    exporting_seconds: float
    """Writing, reading and measuring the files: as long as in the newest jobs, or assumed."""
    basis: str
    """Where the rate of training comes from: measured on recent jobs, or assumed."""
    devices: list[DeviceEstimateView]
    """The same by device; a queue that serves both may take either."""


class DefaultView(View):
    """A value that was chosen for a field of the recipe that the document leaves out."""

    param: str
    """Path of the field."""
    value: Any
    """What stands there now."""
    reason: str
    """The kind of student that the value is for, and its source."""


class ValidationView(View):
    """What would become of a job, without making it."""

    object: Literal["job.validation"] = "job.validation"
    valid: bool
    """Whether the job would be accepted."""
    errors: list[FieldError]
    """The fields that are wrong, at most fifty."""
    more_errors: int = Field(0, ge=0)
    """Number of wrong fields that `errors` leaves out."""
    spec: dict[str, Any] | None = None
    """The job as it would be stored; the seed stays open when none was given."""
    defaults: list[DefaultView] = []
    """Values of `recipe` that depend on the student, where the document gives none."""
    warnings: list[WarningView] = []
    """What is remarkable about the job, though nothing is wrong."""
    steps_per_epoch: int | None = None
    """Optimizer steps of one epoch; null where the headers of the data do not tell."""
    total_steps: int | None = None
    """Optimizer steps of the whole training; null where the headers of the data do not tell."""
    parameters: int | None = None
    """The student's parameters; null where they are not known."""
    estimate: EstimateView | None = None
    """Memory and time; null where too little is known."""


class EventView(View):
    """Something that happened to a job."""

    object: Literal["job.event"] = "job.event"
    seq: int
    """Number of the event within the job, from 1 and without holes."""
    type: str
    """What happened, such as `status`, `phase` or `log`."""
    level: str
    """How much it matters: `info`, `warning` or `error`."""
    message: str
    """What happened, for people."""
    data: dict[str, Any]
    """What happened, for programs; its keys depend on the type."""
    created_at: Time
    """When it happened."""

    @classmethod
    def of(cls, event: EventRow) -> EventView:
        return cls.model_validate(event, from_attributes=True)


class EventPage(View):
    """Events in order; go on with `after` = the last `seq`."""

    object: Literal["list"] = "list"
    data: list[EventView]
    """The events."""
    has_more: bool
    """Whether there are later ones."""


class SeriesView(View):
    """One metric over the steps of training."""

    name: str
    """Name of the metric."""
    steps: list[int]
    """Optimizer steps of the values."""
    values: list[float]
    """The values, one for each step."""


class MetricsView(View):
    """Series of a job, thinned to the number of points asked for."""

    object: Literal["job.metrics"] = "job.metrics"
    data: list[SeriesView]
    """The series."""


class CheckpointView(View):
    """A published state of training."""

    object: Literal["job.checkpoint"] = "job.checkpoint"
    id: str
    """Id of the checkpoint."""
    attempt: int
    """Number of the attempt that saved it."""
    step: int
    """Optimizer steps done in it."""
    size: int
    """Size of its files together, in bytes."""
    created_at: Time
    """When it was published."""

    @classmethod
    def of(cls, row: CheckpointRow) -> CheckpointView:
        size = sum(file["size"] for file in row.files)
        return cls(id=row.id, attempt=row.attempt, step=row.step, size=size, created_at=row.created_at)


class CheckpointList(View):
    """Checkpoints of a job."""

    object: Literal["list"] = "list"
    data: list[CheckpointView]
    """The checkpoints, newest first."""


class ArtifactView(View):
    """A published file of a job."""

    object: Literal["job.artifact"] = "job.artifact"
    id: str
    """Id of the artifact."""
    name: str
    """Name of the file, with folders."""
    media_type: str
    """Media type of the file."""
    size: int
    """Size in bytes."""
    sha256: str
    """SHA-256 of the content in hexadecimal."""
    attempt: int
    """Number of the attempt that published it."""
    created_at: Time
    """When it was published."""

    @classmethod
    def of(cls, row: ArtifactRow) -> ArtifactView:
        return cls.model_validate(row, from_attributes=True)


class ArtifactList(View):
    """Published files of a job."""

    object: Literal["list"] = "list"
    data: list[ArtifactView]
    """The files, by name."""


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
