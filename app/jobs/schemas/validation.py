"""What a job would become and take, before it is submitted."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from app.core.errors import FieldError
from app.core.views import View
from app.jobs.schemas.job import WarningView


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
