"""What people see of a model."""

from __future__ import annotations

from datetime import UTC, datetime
from io import StringIO
from typing import Any

from rich.console import Console

from app.cli import views
from app.cli.objects import Model


def shown(report: dict[str, Any] | None) -> str:
    model = Model(id="model_1", parameters=10, config={}, report=report, created_at=datetime.now(UTC))
    output = StringIO()
    Console(file=output, width=100).print(views.model(model))
    return output.getvalue()


def test_a_models_figures_are_shown_beside_its_teachers() -> None:
    figures = {"accuracy": 0.875, "latency_ms_p50": 0.25, "bytes": 20_000}
    lines = shown({"student": {**figures, "onnx": {"accuracy": 0.875}}, "teacher": {"accuracy": 0.9}}).splitlines()
    header, accuracy = (next(line.split() for line in lines if word in line) for word in ("teacher ", "accuracy"))
    assert header == ["teacher", "model.safetensors", "model.onnx"]
    assert accuracy == ["accuracy", "0.9", "0.875", "0.875"]
    assert ["bytes", "20,000"] in [line.split() for line in lines]


def test_an_uploaded_model_has_no_figures() -> None:
    assert "model.safetensors" not in shown(None)
