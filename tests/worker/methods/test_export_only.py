"""Jobs without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from app.recipe.checks import InputFacts, find_problems
from app.recipe.job import JobSpec
from app.recipe.students.architectures import Vit
from tests import kinds
from tests.worker.training.builders import Played, play, stage, write_teacher
from worker.methods import export_only
from worker.protocol import Assignment, Failed, Finished
from worker.students.weights import WEIGHTS, load_model

NETWORK = Vit(patch_size=3, width=12, depth=2, heads=3)
EXPORTED: dict[str, Any] = {"method": {"kind": "export"}, "losses": []}


STORED: dict[str, tuple[str, Any]] = {
    "multi-label-classification": ("tagger", {"train": "labels"}),
    "keypoints": ("tough", {"train": "points"}),
    "embedding": ("encoder", kinds.PAIRS),
    "image-embedding": ("eye", {"train": "classes"}),
    "causal-lm": ("writer", {key: value for key, value in kinds.LINES.items() if key != "tokenizer"}),
}
"""Stored models and data, by their task."""


def played(folder: Path, **changes: Any) -> Played:
    assignment = stage(folder, teacher=True, **changes)
    write_teacher(folder / "teacher", NETWORK)
    return play(assignment, folder)


@pytest.mark.parametrize("form", ["pre-rmsnorm", "pre-crmsnorm"])
def test_a_converted_teacher_is_exported_with_what_it_saves_and_how_far_it_is(tmp_path: Path, form: str) -> None:
    done = played(tmp_path, student={"architecture": "convert", "to": form}, recipe=EXPORTED)
    assert isinstance(done.word, Finished), done.word
    assert done.word.step == 0
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())
    assert report["train"]["steps"] == 0
    assert report["train"]["conversion"]["relative_difference"] < 1e-5
    assert report["train"]["conversion"]["samples"] == 10
    assert report["origin"] == {"teacher": "teacher", "converted_to": form}
    assert report["student"]["agreement"] == 1.0
    assert report["student"]["parameters"] < report["teacher"]["parameters"]
    assert report["student"]["latency_ms_p50"] > 0 < report["teacher"]["latency_ms_p50"]
    student, teacher = load_model(tmp_path / "bundle"), load_model(tmp_path / "teacher")
    pixels = torch.randint(0, 256, (4, 1, 6, 6))
    assert_close(student(pixels), teacher(pixels), rtol=1e-4, atol=1e-4)


def test_a_conversion_that_differs_fails_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_only, "LARGEST_DIFFERENCE", 0.0)
    done = played(tmp_path, student={"architecture": "convert"}, recipe=EXPORTED)
    assert isinstance(done.word, Failed)
    assert done.word.code == "conversion_differs"


def test_a_stored_model_is_evaluated_and_exported_as_it_is(tmp_path: Path) -> None:
    done = played(tmp_path, student={"architecture": "pretrained", "model": "teacher"}, recipe=EXPORTED)
    assert isinstance(done.word, Finished), done.word
    student, teacher = load_model(tmp_path / "bundle"), load_model(tmp_path / "teacher")
    assert all(torch.equal(student.state_dict()[name], each) for name, each in teacher.state_dict().items())


@pytest.mark.parametrize("task", STORED)
def test_stored_models_of_every_kind_of_output_need_no_losses(task: str, tmp_path: Path) -> None:
    name, data = STORED[task]
    kinds.write_data(tmp_path)
    kinds.write_teachers(tmp_path)
    student = {"architecture": "pretrained", "model": name}
    job = kinds.small_job({"method": {"kind": "export"}}, student, task, data=data)
    spec = JobSpec.model_validate(job)
    inputs = {path.stem: str(path) for path in tmp_path.iterdir()}
    used = {reference: inputs[reference] for reference in spec.references.values()}
    done = play(Assignment(spec=spec, inputs=used), tmp_path)
    assert isinstance(done.word, Finished), done.word
    stored, exported = (load_file(folder / WEIGHTS) for folder in (tmp_path / name, tmp_path / "bundle"))
    assert all(torch.equal(exported[tensor], values) for tensor, values in stored.items())


def test_a_converted_student_can_be_trained_from_there(tmp_path: Path) -> None:
    done = played(tmp_path, student={"architecture": "convert"}, recipe={"losses": [{"kind": "kd"}], "epochs": 1})
    assert isinstance(done.word, Finished), done.word
    assert done.word.step > 0


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"student": {"architecture": "vit", "patch_size": 3}}, "recipe.method.kind"),
        ({"student": {"architecture": "shrink", "layers": 1, "init": "fresh"}}, "student.init"),
        ({"recipe": {**EXPORTED, "max_steps": 3}}, "recipe.max_steps"),
        ({"recipe": {**EXPORTED, "ema_decay": 0.9}}, "recipe.ema_decay"),
        ({"recipe": {**EXPORTED, "losses": [{"kind": "kd"}]}}, "recipe.losses"),
        ({"recipe": {**EXPORTED, "stages": [{"losses": [{"kind": "kd"}], "epochs": 1}]}}, "recipe.stages"),
        ({"resources": {"processes": 2, "queue": "cpu"}}, "resources.processes"),
        ({"teacher": None}, "student.architecture"),
    ],
)
def test_what_has_no_effect_without_steps_is_refused(changes: dict[str, Any], param: str) -> None:
    document: dict[str, Any] = {"data": {"train": "f"}, "teacher": {"model": "m"}, "recipe": EXPORTED}
    given = {**document, "student": {"architecture": "convert"}, **changes}
    problems = find_problems(JobSpec.model_validate(given), InputFacts())
    assert param in [problem.param for problem in problems]
