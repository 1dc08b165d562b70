"""What people see of a model, and of a job before it runs."""

from __future__ import annotations

from datetime import UTC, datetime
from io import StringIO
from typing import Any

from rich.console import Console, RenderableType

from stillhouse import Job, StoredModel, Validation
from stillhouse.cli import views


def printed(view: RenderableType) -> str:
    output = StringIO()
    Console(file=output, width=100).print(view)
    return output.getvalue()


def shown(report: dict[str, Any] | None) -> str:
    return printed(
        views.model(StoredModel(id="model_1", parameters=10, config={}, report=report, created_at=datetime.now(UTC)))
    )


def test_a_models_figures_are_shown_beside_its_teachers() -> None:
    figures = {"accuracy": 0.875, "latency_ms_p50": 0.25, "bytes": 20_000}
    lines = shown({"student": {**figures, "onnx": {"accuracy": 0.875}}, "teacher": {"accuracy": 0.9}}).splitlines()
    header, accuracy = (next(line.split() for line in lines if word in line) for word in ("teacher ", "accuracy"))
    assert header == ["teacher", "model.safetensors", "model.onnx"]
    assert accuracy == ["accuracy", "0.9", "0.875", "0.875"]
    assert ["bytes", "20,000"] in [line.split() for line in lines]


def test_diagnostics_are_shown_with_their_pictures_or_what_kept_them_from_being_computed() -> None:
    calibration = {"figures": {"student": {"ece": 0.125}, "student_scaled": {"ece": 0.0625}}, "picture": "c.png"}
    other = {"left_out": "memory ran out"}
    told = shown({"student": {"accuracy": 0.5}, "diagnostics": {"calibration": calibration, "landscape": other}})
    lines = [line.split() for line in told.splitlines()]
    assert ["calibration", "c.png"] in lines
    assert ["student", "student", "scaled"] in lines
    assert ["ece", "0.125", "0.0625"] in lines
    assert "landscape was not computed: memory ran out" in told


def test_an_uploaded_model_has_no_figures() -> None:
    assert "model.safetensors" not in shown(None)


def test_steps_that_only_a_worker_can_count_are_not_made_up() -> None:
    assert "when a worker has read the data" in printed(views.validation(Validation(valid=True)))
    assert "6 (3 per epoch)" in printed(views.validation(Validation(valid=True, total_steps=6, steps_per_epoch=3)))


def job(**counts: int) -> Job:
    about = {"id": "job_1", "status": "running", "is_final": False, "priority": 50, "queue": "any", "spec": {}}
    return Job.model_validate({**about, "max_attempts": 3, "created_at": datetime.now(UTC), **counts})


def test_attempts_are_told_apart_from_failures() -> None:
    resumed = printed(views.job(job(attempt=2)))
    assert "of at most" not in resumed, "a pause uses no attempt up"
    assert ["attempt", "2"] in [line.split() for line in resumed.splitlines()]
    told = printed(views.job(job(attempt=7, failures=1, interruptions=4)))
    assert "7; 1 of at most 3 failed; 4 interrupted, not counted as failures" in told
    assert "7 (1 failed)" in printed(views.jobs([job(attempt=7, failures=1)]))


def test_jobs_of_a_service_that_does_not_tell_failures_are_shown() -> None:
    assert ["attempt", "1"] in [line.split() for line in printed(views.job(job(attempt=1))).splitlines()]
