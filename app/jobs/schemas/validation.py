"""Validation of a job before it is submitted: the resolved job and its estimates."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from app.core.errors import FieldError
from app.core.views import View
from app.jobs.schemas.job import WarningView


class DeviceEstimateView(View):
    """Memory and time of a job on one kind of device."""

    device: Literal["cpu", "gpu"]
    """Kind of device."""
    memory_bytes: int
    """Peak of main memory, including torch: on a CPU within a quarter of the measured value, on a GPU not verified."""
    gpu_memory_bytes: int | None
    """Peak of GPU memory, with an assumed context; none on a CPU."""
    training_seconds: float | None
    """Training time in seconds; none if only a worker can count the samples."""
    basis: str
    """Source of the rate: measured on recent jobs on such a device, or assumed."""


class EstimateView(View):
    """Estimated memory and time of the job, on the device of its queue."""

    memory_bytes: int
    """Peak of the trainer's main memory, including torch."""
    seconds: float | None
    """Total of training, evaluating and exporting; none if only a worker can count the samples."""
    training_seconds: float | None
    """Training only, in seconds."""
    evaluating_seconds: float | None
    """Evaluation of the student between the epochs, in seconds."""
    exporting_seconds: float
    """Writing, reading and evaluating the files: the time of the newest jobs, or an assumption."""
    basis: str
    """Source of the training rate: measured on recent jobs, or assumed."""
    devices: list[DeviceEstimateView]
    """The same by device; a queue that serves both may take either."""


class DefaultView(View):
    """A default that was chosen for an omitted field of the recipe."""

    param: str
    """Path of the field."""
    value: Any
    """The chosen value."""
    reason: str
    """The kind of student that the value applies to, and its source."""


class ValidationView(View):
    """Result of validating a job without creating it."""

    object: Literal["job.validation"] = "job.validation"
    valid: bool
    """Whether the job would be accepted."""
    errors: list[FieldError]
    """The invalid fields, at most fifty."""
    more_errors: int = Field(0, ge=0)
    """Number of invalid fields that `errors` omits."""
    spec: dict[str, Any] | None = None
    """The job as it would be stored; without a seed if none was given."""
    defaults: list[DefaultView] = []
    """Defaults of `recipe` that depend on the student, for omitted fields."""
    warnings: list[WarningView] = []
    """Warnings about a valid job."""
    steps_per_epoch: int | None = None
    """Optimizer steps of one epoch; null if the headers of the data do not determine it."""
    total_steps: int | None = None
    """Optimizer steps of the whole training; null if the headers of the data do not determine it."""
    parameters: int | None = None
    """The student's parameters; null if unknown."""
    estimate: EstimateView | None = None
    """Memory and time; null if too little is known."""
