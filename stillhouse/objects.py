"""What the service answers, typed. Fields that a newer service adds are kept, and shown by `--json`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from stillhouse.errors import FieldProblem


class Reply(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class Phase(Reply):
    """A phase of an attempt."""

    attempt: int
    phase: str
    started_at: datetime
    ended_at: datetime | None = None


class Progress(Reply):
    """Where training stands."""

    step: int = 0
    total_steps: int | None = None
    epoch: float = 0.0
    samples_per_second: float | None = None
    seconds_left: float | None = None


class JobFailure(Reply):
    """Why a job failed, and by whose fault: user, system, capacity or deadline."""

    fault: str
    code: str
    message: str
    param: str | None = None
    step: int | None = None


class Remark(Reply):
    """Something remarkable about a job that did not keep it from being taken in."""

    code: str
    param: str
    message: str


class Figures(Reply):
    """A student's main metric, and the same of its teachers."""

    metric: str | None = None
    higher_is_better: bool | None = None
    value: float | None = None
    teachers: dict[str, float] = {}
    difference: float | None = None


class Job(Reply):
    """A job, and where it stands."""

    id: str
    name: str | None = None
    status: str
    is_final: bool
    phase: str | None = None
    phases: list[Phase] = []
    progress: Progress = Progress()
    queue_position: int | None = None
    reason: str | None = None
    warnings: list[Remark] = []
    result: Figures | None = None
    error: JobFailure | None = None
    model_id: str | None = None
    checkpoint_id: str | None = None
    cloned_from: str | None = None
    attempt: int
    failures: int = 0
    interruptions: int = 0
    max_attempts: int
    priority: int
    queue: str
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    spec: dict[str, Any]


class Event(Reply):
    """Something that happened to a job; `seq` counts 1, 2, 3, … without holes."""

    seq: int
    type: str
    level: str
    message: str
    data: dict[str, Any] = {}
    created_at: datetime


class Series(Reply):
    """One metric over the steps of training."""

    name: str
    steps: list[int]
    values: list[float]


class Checkpoint(Reply):
    """A published state of training."""

    id: str
    attempt: int
    step: int
    size: int
    created_at: datetime


class Artifact(Reply):
    """A published file of a job or of a model."""

    name: str
    media_type: str
    size: int
    sha256: str


class Baseline(Reply):
    """A job that trained the same student on the same data without a teacher."""

    job_id: str
    name: str | None = None
    value: float
    difference: float


class ReportWarning(Reply):
    """Something that puts a report's figures in doubt."""

    code: str
    message: str


class Result(Figures):
    """What a job came to."""

    job_id: str
    model_id: str | None = None
    alone: Baseline | None = None
    warnings: list[ReportWarning] = []
    artifacts: list[Artifact] = []


class DefaultChoice(Reply):
    """A value that was chosen for a field that a job leaves out."""

    param: str
    value: Any
    reason: str


class DeviceEstimate(Reply):
    """What a job will take on one kind of device."""

    device: str
    memory_bytes: int
    gpu_memory_bytes: int | None = None
    training_seconds: float | None = None
    basis: str


class Estimate(Reply):
    """What a job will take, as far as can be told before it runs."""

    memory_bytes: int
    seconds: float | None
    training_seconds: float | None = None
    evaluating_seconds: float | None = None
    exporting_seconds: float | None = None
    basis: str
    devices: list[DeviceEstimate] = []


class Validation(Reply):
    """What would become of a job."""

    valid: bool
    errors: list[FieldProblem] = []
    spec: dict[str, Any] | None = None
    steps_per_epoch: int | None = None
    total_steps: int | None = None
    parameters: int | None = None
    estimate: Estimate | None = None
    defaults: list[DefaultChoice] = []
    warnings: list[Remark] = []


class File(Reply):
    """An uploaded file."""

    id: str
    name: str
    size: int
    sha256: str
    created_at: datetime


class Part(Reply):
    """A part of an upload that has arrived."""

    number: int
    size: int
    sha256: str


class Upload(Reply):
    """A file on its way in."""

    id: str
    name: str
    status: str
    parts: list[Part] = []
    max_part_bytes: int


class StoredModel(Reply):
    """A teacher or student whose bundle the service keeps."""

    id: str
    name: str | None = None
    job_id: str | None = None
    teacher_id: str | None = None
    parameters: int | None
    config: dict[str, Any] | None = None
    report: dict[str, Any] | None = None
    files: list[Artifact] = []
    created_at: datetime


class Modules(Reply):
    """Module paths of a model's network; `source` says where they come from: architecture, tensors or none."""

    model_id: str
    source: str
    complete: bool
    paths: list[str]


class CatalogPaper(Reply):
    """The source of a method."""

    title: str
    arxiv: str
    url: str


class CatalogOption(Reply):
    """One thing that a job can choose."""

    group: str
    kind: str
    description: str
    paper: CatalogPaper | None = None
    defaults: dict[str, Any]
    json_schema: dict[str, Any]


class Key(Reply):
    """An API key; `key` itself is shown once, when it is made."""

    id: str
    name: str
    hint: str
    scopes: list[str]
    key: str | None = None
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
