"""Views of a job's events, metrics, checkpoints and files."""

from __future__ import annotations

from typing import Any, Literal

from app.core.clock import Time
from app.core.views import View
from app.jobs.tables import ArtifactRow, CheckpointRow, EventRow


class EventView(View):
    """An event of a job."""

    object: Literal["job.event"] = "job.event"
    seq: int
    """Number of the event within the job, from 1 and without gaps."""
    type: str
    """Type of the event, such as `status`, `phase` or `log`."""
    level: str
    """Severity: `info`, `warning` or `error`."""
    message: str
    """Description of the event, for people."""
    data: dict[str, Any]
    """Data of the event, for programs; its keys depend on the type."""
    created_at: Time
    """When it happened."""

    @classmethod
    def of(cls, event: EventRow) -> EventView:
        return cls.model_validate(event, from_attributes=True)


class EventPage(View):
    """Events in order; the next page has `after` = the last `seq`."""

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
    """Series of a job, down-sampled to the requested number of points."""

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
    """Total size of its files, in bytes."""
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
