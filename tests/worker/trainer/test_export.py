"""The exported graph, as a user would run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from tests.worker.trainer.builders import CLASSES, SIDE, play, stage
from worker.errors import SystemFault
from worker.protocol import Finished
from worker.students.weights import load_model
from worker.trainer.export import require_same, require_same_metrics

STUDENTS: list[dict[str, Any]] = [
    {"architecture": "mlp", "hidden": [8]},
    {"architecture": "cifar-resnet", "depth": 8, "width": 2},
    {"architecture": "wide-resnet", "depth": 10},
    {"architecture": "vit", "patch_size": 3, "width": 8, "depth": 1, "heads": 2},
]


@pytest.mark.parametrize("student", STUDENTS, ids=lambda student: student["architecture"])
def test_the_graph_takes_any_number_of_raw_images(tmp_path: Path, student: dict[str, Any]) -> None:
    word = play(stage(tmp_path, student=student, export=["safetensors", "onnx"]), tmp_path).word
    assert isinstance(word, Finished)
    assert "model.onnx" in [artifact.name for artifact in word.artifacts]
    session = onnxruntime.InferenceSession(tmp_path / "bundle" / "model.onnx")
    model = load_model(tmp_path / "bundle")
    for count in (1, 2, 7):
        images = np.random.default_rng(count).integers(0, 256, (count, 1, SIDE, SIDE)).astype(np.float32)
        (logits,) = session.run(["logits"], {"images": images})
        assert logits.shape == (count, CLASSES)
        torch.testing.assert_close(torch.from_numpy(logits), model(torch.from_numpy(images)), rtol=1e-4, atol=1e-4)


def test_the_report_measures_the_graph_too(tmp_path: Path) -> None:
    play(stage(tmp_path, export=["safetensors", "onnx"]), tmp_path)
    student = json.loads((tmp_path / "bundle" / "report.json").read_text())["student"]
    assert student["onnx"]["accuracy"] == student["accuracy"]
    assert student["onnx"]["bytes"] == (tmp_path / "bundle" / "model.onnx").stat().st_size
    assert student["onnx"]["latency_runtime"] == "onnxruntime"


def test_exporting_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    play(stage(tmp_path, export=["safetensors", "onnx"]), tmp_path)
    assert capfd.readouterr() == ("", "")


def test_logits_within_the_tolerance_pass_and_beyond_it_fail() -> None:
    live = torch.tensor([[10.0, -3.0], [0.0, 1.0]])
    require_same("model.onnx", live + 9e-4, live)
    with pytest.raises(SystemFault, match=r"model\.onnx gives other logits"):
        require_same("model.onnx", live + 2e-3, live)
    with pytest.raises(SystemFault):
        require_same("model.onnx", live * torch.nan, live)


def test_metrics_may_only_move_as_far_as_the_tolerance_explains() -> None:
    logits = torch.tensor([[5.0, 0.0], [5.0, 5.0], [5.0, 0.0], [0.0, 5.0]])
    live = {"accuracy": 0.75, "nll": 0.2}
    require_same_metrics("f", {"accuracy": 0.5, "nll": 0.2}, live, logits)  # the second sample is a tie
    with pytest.raises(SystemFault, match="accuracy"):
        require_same_metrics("f", {"accuracy": 0.25, "nll": 0.2}, live, logits)
    with pytest.raises(SystemFault, match="nll"):
        require_same_metrics("f", {"accuracy": 0.75, "nll": 0.21}, live, logits)
