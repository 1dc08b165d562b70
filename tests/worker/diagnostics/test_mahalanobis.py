"""Detection of outliers by Mahalanobis distances."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.recipe.diagnostics import Mahalanobis
from app.recipe.losses.taps import Tap
from tests.worker.training.builders import SAMPLES, play, stage
from worker.data.batches import whole_split
from worker.diagnostics import run_diagnostics
from worker.diagnostics.base import DiagnosticInputs, HeldOutPart
from worker.diagnostics.features import layer_taps, pooled, reading_features
from worker.diagnostics.mahalanobis import MahalanobisAnalysis
from worker.metrics.detection import detection
from worker.protocol import Failed, Finished
from worker.students.model import Model
from worker.students.weights import load_model

CPU = torch.device("cpu")


def staged(folder: Path, *asked: dict[str, Any], side: int = 6, **changes: Any) -> Any:
    """A job with diagnostics, and a file of noise."""
    assignment = stage(
        folder,
        teacher=True,
        **{"data": {"train": "data", "eval_fraction": 0.4}, "evaluation": {"diagnostics": list(asked)}, **changes},
    )
    noise = np.random.default_rng(1).integers(0, 256, (30, side, side)).astype(np.uint8)
    np.savez(folder / "noise.npz", x=noise)
    return assignment.model_copy(update={"inputs": {**assignment.inputs, "noise": "noise.npz"}})


def test_perfect_and_reversed_scores_have_the_extreme_figures() -> None:
    low, high = torch.linspace(0, 1, 20), torch.linspace(2, 3, 20)
    best = detection(high, low)
    assert best == (1.0, 1.0, 1.0, 1.0, 1.0)
    worst = detection(low, high)
    assert (worst.tnr_at_tpr95, worst.auroc, worst.detection_accuracy) == (0.0, 0.0, 0.5)


def test_the_threshold_keeps_95_percent_of_the_samples() -> None:
    inside = torch.arange(100).double()
    outside = torch.tensor([3.5, 4.5, 5.5, 50.0])
    assert detection(inside, outside).tnr_at_tpr95 == 0.5  # 5 is the highest threshold that 95 of 100 reach


def test_report_has_both_models_all_layers_and_a_picture(tmp_path: Path) -> None:
    asked = {"kind": "mahalanobis", "data": "noise"}
    student = {"architecture": "cifar-resnet", "depth": 8}
    word = play(staged(tmp_path, asked, student=student, recipe={"epochs": 1}), tmp_path).word
    assert isinstance(word, Finished), word
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())
    found = report["diagnostics"]["mahalanobis"]
    assert set(found["figures"]) == {"student", "teacher"}
    sets = {name.partition("_")[0] for name in found["figures"]["student"]}
    assert sets == {"data", "fgsm", "pgd"}
    assert found["figures"]["teacher"]["data_auroc"] > 0.9  # noise is far from any class
    layers = [row["layer"] for row in found["table"] if row["model"] == "student" and row["outliers"] == "data"]
    assert layers == ["stages.0", "stages.1", "stages.2", "head"]
    assert found["picture"] == "mahalanobis.png"
    assert report["sources"]["evaluation.diagnostics[0].data"]["reference"] == "noise"
    assert (tmp_path / "bundle" / "mahalanobis.png").is_file()


@pytest.mark.parametrize("changes", [{"combination": "logistic"}, {"magnitude": 0.01, "layers": "last"}])
def test_other_combinations_and_moved_inputs_work_and_repeat(tmp_path: Path, changes: dict[str, Any]) -> None:
    figures = []
    for name in ("a", "b"):
        asked = {"kind": "mahalanobis", "data": "noise", "attacks": ["fgsm"], **changes}
        word = play(staged(tmp_path / name, asked), tmp_path / name).word
        assert isinstance(word, Finished), word
        figures.append(json.loads((tmp_path / name / "bundle" / "report.json").read_text())["diagnostics"])
    assert figures[0] == figures[1]
    assert figures[0]["mahalanobis"]["figures"]["student"]["data_auroc"] > 0.5


def test_outliers_of_another_size_are_refused_with_their_field(tmp_path: Path) -> None:
    word = play(staged(tmp_path, {"kind": "mahalanobis", "data": "noise"}, side=7), tmp_path).word
    assert isinstance(word, Failed)
    assert (word.code, word.param) == ("invalid_job", "evaluation.diagnostics[0].data")
    assert "as in data.train" in word.message


def test_the_models_are_as_before(tmp_path: Path) -> None:
    play(staged(tmp_path), tmp_path)
    student = load_model(tmp_path / "bundle").train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    images = torch.randint(0, 256, (SAMPLES, 1, 6, 6), dtype=torch.uint8)
    split = whole_split({"images": images}, torch.arange(SAMPLES) % 4)
    spec = Mahalanobis(magnitude=0.01)
    state = torch.get_rng_state()
    analysed = MahalanobisAnalysis(spec)(
        DiagnosticInputs(lambda batch: batch.targets, HeldOutPart(split), None, 3, CPU, student, {}, split)
    )
    assert analysed.figures
    assert torch.equal(torch.get_rng_state(), state)
    assert student.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.modules())


def test_padding_does_not_count() -> None:
    activations = torch.tensor([[[1.0], [3.0], [100.0]], [[4.0], [6.0], [8.0]]])
    counted = torch.tensor([[True, True, False], [True, True, True]])
    assert pooled(activations, counted).tolist() == [[2.0], [6.0]]


def test_fewer_samples_than_numbers_are_warned_of(tmp_path: Path) -> None:
    play(staged(tmp_path), tmp_path)
    student: Model = load_model(tmp_path / "bundle")
    images = torch.randint(0, 256, (8, 1, 6, 6), dtype=torch.uint8)
    split = whole_split({"images": images}, torch.arange(8) % 4)
    found = run_diagnostics(
        [Mahalanobis(attacks=["fgsm"])],
        lambda batch: batch.targets,
        HeldOutPart(split),
        3,
        CPU,
        tmp_path,
        student,
        train=split,
    )
    assert "8 training samples for features of 8 numbers" in found.warnings[0]["message"]
    with reading_features(student, [Tap(path="3", at="input")]) as features:
        assert features(images)[0].shape == (8, 8)
    assert [tap.at for tap in layer_taps(student, images)] == ["input"]


def test_one_sample_of_each_class_has_no_covariance(tmp_path: Path) -> None:
    play(staged(tmp_path), tmp_path)
    student: Model = load_model(tmp_path / "bundle")
    images = torch.randint(0, 256, (4, 1, 6, 6), dtype=torch.uint8)
    split = whole_split({"images": images}, torch.arange(4))
    found = run_diagnostics(
        [Mahalanobis()], lambda batch: batch.targets, HeldOutPart(split), 3, CPU, tmp_path, student, train=split
    )
    assert "do not differ within any class" in found.figures["mahalanobis"]["left_out"]
