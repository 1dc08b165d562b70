"""Objects in responses of the service.

Each corresponds to one schema of the OpenAPI document (a test compares them). Fields that a newer service adds are
kept; those that an older one does not send have a default.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from stillhouse.errors import FieldProblem


class Reply(BaseModel):
    """Base of all objects; immutable."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class Phase(Reply):
    """A phase of an attempt: staging, mining, training, evaluating, exporting or publishing."""

    attempt: int
    phase: str
    started_at: datetime
    ended_at: datetime | None = None


class Progress(Reply):
    """Progress of the training."""

    step: int = 0
    total_steps: int | None = None
    epoch: float = 0.0
    samples_per_second: float | None = None
    seconds_left: float | None = None
    progress_at: datetime | None = None


class JobFailure(Reply):
    """Why a job failed; `fault` is one of user, system, capacity and deadline."""

    fault: str
    code: str
    message: str
    param: str | None = None
    step: int | None = None


class Remark(Reply):
    """A warning about a job that was accepted nevertheless."""

    code: str
    param: str
    message: str


class Figures(Reply):
    """The main metric of a student, and that of its teachers by name."""

    metric: str | None = None
    higher_is_better: bool | None = None
    value: float | None = None
    teachers: dict[str, float] = {}
    difference: float | None = None
    """The student's value minus that of its best teacher."""


class Job(Reply):
    """A job and its current state."""

    id: str
    name: str | None = None
    status: str
    is_final: bool
    phase: str | None = None
    phases: list[Phase] = []
    progress: Progress = Progress()
    queue_position: int | None = None
    reason: str | None = None
    """Why no worker would take a queued job; None if one would."""
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
    status_at: datetime | None = None
    deadline_at: datetime | None = None
    spec: dict[str, Any]


class Event(Reply):
    """An event of a job; `seq` counts 1, 2, 3, … without gaps."""

    seq: int
    type: str
    level: str
    message: str
    data: dict[str, Any] = {}
    created_at: datetime


class Series(Reply):
    """One metric over the optimizer steps of a job."""

    name: str
    steps: list[int]
    values: list[float]


class Checkpoint(Reply):
    """A published training state; `size` is in bytes."""

    id: str
    attempt: int
    step: int
    size: int
    created_at: datetime


class ModelFile(Reply):
    """A file of a model's bundle; `size` is in bytes, `sha256` in hexadecimal."""

    name: str
    media_type: str
    size: int
    sha256: str


class Artifact(ModelFile):
    """A published file of a job."""

    id: str | None = None
    attempt: int | None = None
    created_at: datetime | None = None


class Baseline(Reply):
    """The newest job that trained the same student on the same data without a teacher."""

    job_id: str
    name: str | None = None
    value: float
    difference: float
    """The distilled student's value minus this one's."""


class ReportWarning(Reply):
    """A reason to doubt the figures of a report, found during training."""

    code: str
    message: str


class Result(Figures):
    """The result of a job that succeeded."""

    job_id: str
    model_id: str | None = None
    alone: Baseline | None = None
    warnings: list[ReportWarning] = []
    artifacts: list[Artifact] = []


class DefaultChoice(Reply):
    """The default that was chosen for an omitted field."""

    param: str
    value: Any
    reason: str


class DeviceEstimate(Reply):
    """Estimated memory and time of a job on one kind of device."""

    device: str
    memory_bytes: int
    gpu_memory_bytes: int | None = None
    training_seconds: float | None = None
    basis: str


class Estimate(Reply):
    """Estimated memory and time of a job; None if only a worker can determine it."""

    memory_bytes: int
    seconds: float | None
    training_seconds: float | None = None
    evaluating_seconds: float | None = None
    exporting_seconds: float | None = None
    basis: str
    devices: list[DeviceEstimate] = []


class Validation(Reply):
    """The validation of a job: the job as it would be stored, or every invalid field."""

    valid: bool
    errors: list[FieldProblem] = []
    more_errors: int = 0
    """Number of invalid fields that `errors` omits."""
    spec: dict[str, Any] | None = None
    steps_per_epoch: int | None = None
    total_steps: int | None = None
    parameters: int | None = None
    estimate: Estimate | None = None
    defaults: list[DefaultChoice] = []
    warnings: list[Remark] = []


class RecommendedRecipe(Reply):
    """A recipe for a job; `expected_ratio` is the student's expected score as a share of its teacher's, with the
    extremes of the models that were fitted without a part of the data sets. A default has a `reason` instead."""

    recipe: dict[str, Any]
    expected_ratio: float | None = None
    lowest_ratio: float | None = None
    highest_ratio: float | None = None
    job_ids: list[str] = []
    reason: str | None = None


class LearnedFrom(Reply):
    """The past jobs behind a recommendation, and its quality on data sets that were left out."""

    jobs: int
    data_sets: int
    job_ids: list[str] = []
    mean_absolute_error: float | None = None
    rank_correlation: float | None = None


class Recommendation(Reply):
    """Recipes for a job, best first; `basis` is past_jobs or defaults."""

    basis: str
    reason: str
    recipes: list[RecommendedRecipe]
    learned_from: LearnedFrom
    notes: list[str] = []


class File(Reply):
    """An uploaded file; `size` is in bytes, `sha256` in hexadecimal."""

    id: str
    name: str
    format: str | None = None
    size: int
    sha256: str
    created_at: datetime


class Part(Reply):
    """A part of an upload that has arrived."""

    number: int
    size: int
    sha256: str


class Upload(Reply):
    """An upload in parts."""

    id: str
    name: str
    status: str
    size: int | None = None
    sha256: str | None = None
    parts: list[Part] = []
    max_part_bytes: int
    file_id: str | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None


class StoredModel(Reply):
    """A teacher or student stored by the service; lists omit `report` and `children`."""

    id: str
    name: str | None = None
    job_id: str | None = None
    file_id: str | None = None
    teacher_id: str | None = None
    format: str | None = None
    parameters: int | None
    config: dict[str, Any] | None = None
    report: dict[str, Any] | None = None
    children: list[str] = []
    files: list[ModelFile] = []
    created_at: datetime


class Modules(Reply):
    """Module paths of a model's network; `source` is one of architecture, tensors and none."""

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
    """A loss, optimizer, schedule or student that a job can choose."""

    group: str
    kind: str
    description: str
    equation: str | None = None
    applies: str | None = None
    tasks: list[str] | None = None
    paper: CatalogPaper | None = None
    defaults: dict[str, Any]
    json_schema: dict[str, Any]


class Key(Reply):
    """An API key; `key` itself is only in the response to its creation."""

    id: str
    name: str
    hint: str
    scopes: list[str]
    key: str | None = None
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
