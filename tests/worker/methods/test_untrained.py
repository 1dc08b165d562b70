"""A job that trains nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.worker.training.builders import CLASSES, play, stage
from worker.protocol import Failed, Finished
from worker.students.weights import load_model
from worker.tasks.prediction import predict

UNTRAINED: dict[str, Any] = {
    "student": {"architecture": "pretrained", "model": "teacher"},
    "recipe": {"losses": [], "method": {"kind": "untrained"}},
    "evaluation": {"diagnostics": [{"kind": "calibration", "bins": 3}, {"kind": "widedeep"}]},
    "data": {"train": "data", "eval_fraction": 0.4},
}


def test_the_stored_model_is_evaluated_as_it_is_and_nothing_else_is_made(tmp_path: Path) -> None:
    word = play(stage(tmp_path, **UNTRAINED), tmp_path).word
    assert isinstance(word, Finished), word
    assert {one.name for one in word.artifacts} == {
        "report.json",
        "recipe.json",
        "calibration.png",
        "widedeep.png",
    }
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())
    assert report["train"]["steps"] == 0
    stored, evaluated = load_model(tmp_path / "teacher"), load_model(tmp_path / "bundle")
    images = np.load(tmp_path / "data.npz")["x"][:, None]

    assert torch.equal(*(predict(each, torch.from_numpy(images)) for each in (stored, evaluated)))
    assert set(report["diagnostics"]["widedeep"]["figures"]) == {"student"}


def test_beside_a_teacher_both_are_analysed(tmp_path: Path) -> None:
    word = play(stage(tmp_path, teacher=True, **UNTRAINED), tmp_path).word
    assert isinstance(word, Finished), word
    found = json.loads((tmp_path / "bundle" / "report.json").read_text())["diagnostics"]["widedeep"]["figures"]
    assert found["student"] == found["teacher"]


def test_a_model_with_other_classes_is_refused_because_its_last_layer_would_be_random(tmp_path: Path) -> None:
    data = {"train": "binary", "eval_fraction": 0.4}
    word = play(stage(tmp_path, **{**UNTRAINED, "data": data}), tmp_path).word
    assert isinstance(word, Failed)
    assert (word.fault, word.param) == ("user", "student")
    assert f"{CLASSES} outputs" in word.message
